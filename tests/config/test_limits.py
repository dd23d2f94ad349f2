"""Every number that a run is told has a limit, and no file is long or deep enough to take the machine's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from secateur.benchmarking.bench import bench
from secateur.config.fields import Settings
from secateur.config.quantities import parse_search
from secateur.config.recipe import load_recipe, make_recipe
from secateur.config.training import Recovery, make_recovery
from secateur.data import documents, rows, tokens
from secateur.data.corpus import Corpus
from secateur.errors import InputError
from secateur.system.device import set_threads
from tests.small import byte_tokenizer

CHECKED_ELSEWHERE = ("sparsity", "window", "protect")
NUMBERS = [
    (schema, name)
    for schema in (Settings, Recovery)
    for name, field in schema.model_fields.items()
    if {int, float} & {field.annotation, *get_args(field.annotation)} and name not in CHECKED_ELSEWHERE
]


@pytest.mark.parametrize(("schema", "name"), NUMBERS, ids=lambda part: getattr(part, "__name__", part))
def test_every_number_has_a_limit(schema: Any, name: str) -> None:
    make = make_recovery if schema is Recovery else lambda told: make_recipe({"model": "x", "sparsity": 0.5, **told})
    kinds = get_args(schema.model_fields[name].annotation) or (schema.model_fields[name].annotation,)
    huge: Any = 10**30 if int in kinds else 1e30
    with pytest.raises(InputError, match=name):
        make({name: huge})


def test_a_window_and_a_search_have_a_limit_too() -> None:
    with pytest.raises(InputError, match="window"):
        make_recipe({"model": "x", "sparsity": 0.5, "window": 10**6})
    with pytest.raises(InputError, match="search"):
        parse_search("9999999999h")


BOMB = "\n".join(["a0: &a0 [x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])


@pytest.mark.parametrize(
    ("text", "said"),
    [(BOMB, "aliases"), ("[" * 50_000, "valid|deeply"), ("a: " + "x" * 2**21, "bytes"), ("a: 2020-99-99", "valid")],
    ids=["bomb", "deep", "long", "date"],
)
def test_a_recipe_that_would_take_the_memory_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=said) as refusal:
        load_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(refusal.value)


def test_threads_by_the_thousand_are_refused() -> None:
    before = torch.get_num_threads()
    with pytest.raises(InputError, match="too many"):
        set_threads(100_000)
    with pytest.raises(InputError, match="too many"):
        bench("embedded", threads=100_000)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("blank", [" ", "\n", ""])
def test_long_text_goes_through_the_tokenizer_in_pieces(monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    text = f"one é two{blank}" * 50
    corpus, tokenizer = Corpus("x", "", ("short", text, "é")), byte_tokenizer()
    whole = tokens.tokenize_with_bytes(corpus, tokenizer)
    monkeypatch.setattr(tokens, "PIECE", 64)
    assert max(last - first for first, last in tokens._cuts(text)) <= 64
    pieces = tokens.tokenize_with_bytes(corpus, tokenizer)
    assert [len(part.ids) for part in pieces] == [len(part.ids) for part in whole]
    for one, other in zip(whole, pieces, strict=True):
        assert one.ids == other.ids
        assert one.ends is not None
        assert other.ends is not None
        assert one.ends.tolist() == other.ends.tolist()


def test_a_tokenizer_that_fails_on_a_text_is_no_traceback() -> None:
    class Broken:
        bos_token_id = None

        def __call__(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("no\nway")

    with pytest.raises(InputError, match="no way"):
        tokens.tokenize(Corpus("x", "", ("a",)), Broken())


def test_a_text_beyond_reading_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("some words")
    monkeypatch.setattr(rows, "MOST_BYTES", 4)
    with pytest.raises(InputError, match="GB"):
        documents.load_corpus(str(tmp_path / "a.txt"))
