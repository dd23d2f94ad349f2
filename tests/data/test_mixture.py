"""Calibration text of several sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from secateur.data.batches import calibration_batches
from secateur.data.documents import load_corpus
from secateur.data.mixture import calibration_of, counts_of, shares_of
from secateur.errors import InputError
from tests.small import byte_tokenizer


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, letter in (("a", "a"), ("b", "b")):
        lines = "".join(json.dumps({"text": letter * 100}) + "\n" for _ in range(40))
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(spec: str, samples: int = 8, seed: int = 0) -> torch.Tensor:
    return calibration_of(spec, byte_tokenizer, samples, 16, seed, 259).tokens


def test_specifications() -> None:
    assert shares_of("a.jsonl:1,b.jsonl:3") == [("a.jsonl", 0.25), ("b.jsonl", 0.75)]
    assert shares_of("a.jsonl, b.jsonl") == [("a.jsonl", 0.5), ("b.jsonl", 0.5)]
    assert shares_of("stdlib:code:0.5,stdlib:prose:0.5") == [("stdlib:code", 0.5), ("stdlib:prose", 0.5)]
    assert shares_of("stdlib:code") == [("stdlib:code", 1.0)]
    assert shares_of("owner/name:config:train") == [("owner/name:config:train", 1.0)]


@pytest.mark.parametrize(
    ("spec", "says"),
    [("a:1,b", "some sources only"), ("a:0,b:1", "above 0"), ("a:1,a:2", "twice"), ("a:nan,b:1", "above 0")],
)
def test_what_makes_no_sense(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        shares_of(spec)


@pytest.mark.parametrize("samples", [3, 8, 100])
def test_counts_add_up(samples: int) -> None:
    for shares in ([0.5, 0.5], [0.98, 0.01, 0.01], [1 / 3] * 3):
        if len(shares) <= samples:
            counts = counts_of(shares, samples)
            assert sum(counts) == samples
            assert min(counts) >= 1


def test_each_source_has_its_share(texts: Path) -> None:
    tokens = draw("a.jsonl:0.75,b.jsonl:0.25")
    letters = [set(byte_tokenizer().decode(row, skip_special_tokens=True)) for row in tokens.tolist()]
    assert sum(found == {"a"} for found in letters) == 6
    assert sum(found == {"b"} for found in letters) == 2
    assert letters[:6] != [{"a"}] * 6  # mixed
    assert torch.equal(tokens, draw("a.jsonl:0.75,b.jsonl:0.25"))
    assert not torch.equal(tokens, draw("a.jsonl:0.75,b.jsonl:0.25", seed=1))


def test_one_source_is_as_it_was(texts: Path) -> None:
    expected = calibration_batches(load_corpus("a.jsonl"), byte_tokenizer(), 8, 16, 0, vocab_size=259)
    found = calibration_of("a.jsonl", byte_tokenizer, 8, 16, 0, 259)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.held_out, expected.held_out)
    assert (found.sha256, found.source, found.source_sha256) == (
        expected.sha256,
        expected.source,
        expected.source_sha256,
    )


def test_too_few_samples(texts: Path) -> None:
    with pytest.raises(InputError, match="less than one for each of 2 sources"):
        draw("a.jsonl,b.jsonl", samples=1)


def test_a_file_with_a_comma_is_one_file(texts: Path) -> None:
    (texts / "a.jsonl").rename(texts / "a,b:1.jsonl")
    assert shares_of("a,b:1.jsonl") == [("a,b:1.jsonl", 1.0)]
