from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from secateur.data import tokens
from secateur.data.batches import calibration_batches
from secateur.data.corpus import Corpus, from_texts
from secateur.data.documents import load_corpus
from secateur.errors import InputError
from tests.small import byte_tokenizer


def numbered(count: int) -> Corpus:
    """Documents of three tokens each, all different."""
    return Corpus("x", "abc", ids=tuple((3 * n, 3 * n + 1, 3 * n + 2) for n in range(count)))


def test_documents_are_joined_cut_and_drawn_without_overlap() -> None:
    found = calibration_batches(numbered(10), None, samples=4, length=4, seed=3, held_out=2)
    assert found.tokens.shape == (4, 4)
    assert found.held_out.shape == (2, 4)
    pieces = {tuple(range(start, start + 4)) for start in range(0, 28, 4)}
    drawn = [tuple(row.tolist()) for row in [*found.tokens, *found.held_out]]
    assert set(drawn) < pieces
    assert len(set(drawn)) == 6
    assert found.notes == ()
    assert (found.source, found.source_sha256) == ("x", "abc")


def test_the_draw_depends_on_the_seed_alone() -> None:
    first, again, other = (calibration_batches(numbered(50), None, 8, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(first.tokens, again.tokens)
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


def test_the_permutation_is_the_same_on_every_machine() -> None:
    found = calibration_batches(Corpus("x", "", ids=(tuple(range(8)),)), None, samples=8, length=1, seed=0)
    assert found.tokens.flatten().tolist() == [4, 0, 7, 3, 2, 5, 1, 6]
    assert found.sha256.startswith("1c9a4d0a5680d27a")


def test_each_document_brings_its_bos() -> None:
    found = calibration_batches(from_texts("x", ["ab", "cd"]), byte_tokenizer(), samples=1, length=6)
    assert (found.tokens == 258).sum() == 2
    assert found.tokens[0, [0, 3]].tolist() == [258, 258]


def test_fewer_than_asked_for_is_used_and_noted() -> None:
    found = calibration_batches(numbered(10), None, samples=100, length=4)
    assert found.tokens.shape == (7, 4)
    assert found.held_out.shape == (0, 4)
    assert found.notes == ("x gives 7 sequences of 4 tokens; 100 were asked for",)


def test_shorter_than_one_sequence() -> None:
    with pytest.raises(InputError, match="x has 9 tokens, less than one sequence of 10; use --length 9 or less"):
        calibration_batches(numbered(3), None, length=10)


def test_ids_outside_of_the_vocabulary() -> None:
    with pytest.raises(InputError, match="document 2 has token id 5"):
        calibration_batches(numbered(2), None, length=2, vocab_size=5)
    with pytest.raises(InputError, match=r"the model knows 0\.\.258"):
        calibration_batches(numbered(100), byte_tokenizer(), length=2)


@pytest.mark.parametrize("flag", ["samples", "length"])
def test_numbers_below_one(flag: str) -> None:
    with pytest.raises(InputError, match=f"--{flag} 0 is too small"):
        calibration_batches(numbered(2), None, **{flag: 0})


def test_the_protocol_on_real_data_step_by_step(shared: Path) -> None:
    path, tokenizer = (
        shared / "data/tinystories/calibrate.jsonl",
        AutoTokenizer.from_pretrained(shared / "models/stories260K"),
    )
    corpus = load_corpus(str(path))
    few = Corpus(corpus.name, corpus.sha256, documents=(corpus.documents or ())[:300])
    found = calibration_batches(few, tokenizer, samples=128, length=512, seed=0)
    joined: list[int] = []
    for line in path.read_text().splitlines()[:300]:
        joined += [1, *tokenizer.encode(json.loads(line)["text"], add_special_tokens=False)]
    count = len(joined) // 512
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    assert found.tokens.tolist() == [joined[512 * n : 512 * n + 512] for n in order[:128]]
    assert found.held_out.tolist() == [joined[512 * n : 512 * n + 512] for n in order[128:160]]


def test_tokens_of_pythons_own_text_are_kept_and_the_draw_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, calls = from_texts("stdlib", [f"text {n} " * 9 for n in range(40)]), []
    straight = calibration_batches(corpus, byte_tokenizer(), 8, 16)
    shipped = replace(corpus, shipped=True)
    real = tokens.tokenize
    monkeypatch.setattr(tokens, "tokenize", lambda *given: calls.append(given) or real(*given))
    for _ in range(2):
        found = calibration_batches(shipped, byte_tokenizer(), 8, 16)
        assert found.sha256 == straight.sha256
        assert torch.equal(found.held_out, straight.held_out)
    assert len(calls) == 1, "the second draw reads what the first has kept"
    part = replace(shipped, documents=(corpus.documents or ())[:20])
    assert calibration_batches(part, byte_tokenizer(), 8, 16).sha256 != straight.sha256
    with pytest.raises(InputError, match="has token id"):
        calibration_batches(shipped, byte_tokenizer(), 8, 16, vocab_size=100)
