"""Conversations and tasks as calibration text, and which of their tokens count."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.data.batches import calibration_batches
from secateur.data.conversations import Talk, encode_example, talk_of
from secateur.data.documents import check_there, load_corpus
from secateur.data.mixture import calibration_of
from secateur.data.tokens import tokenize, tokenize_counted
from secateur.errors import InputError
from tests.cases import case
from tests.small import byte_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
SAME = (
    {"messages": MESSAGES},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    {"instruction": "Hi", "input": "", "output": "Ho"},
    {"prompt": "Hi", "completion": "Ho"},
)


def chatty() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def counted(ids: list[int], counts: list[bool], tokenizer: Any) -> str:
    return tokenizer.decode([token for token, own in zip(ids, counts, strict=True) if own])


def test_every_form_is_the_same_conversation() -> None:
    tokenizer = chatty()
    for row in SAME:
        with case(*row):
            ids, counts = encode_example(talk_of("here", row), tokenizer)
            assert tokenizer.decode(ids) == "<user>Hi</><assistant>Ho</>"
            assert counted(ids, counts, tokenizer) == "Ho</>"


def test_every_answer_counts() -> None:
    tokenizer = chatty()
    twice = [*MESSAGES, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Ha"}]
    ids, counts = encode_example(talk_of("here", {"messages": twice}), tokenizer)
    assert counted(ids, counts, tokenizer) == "Ho</>Ha</>"


def test_without_a_template() -> None:
    ids, counts = encode_example(talk_of("x", SAME[2]), byte_tokenizer())
    assert counted(ids, counts, byte_tokenizer()) == "Ho"
    with pytest.raises(InputError, match="x is a conversation and the tokenizer has no chat template"):
        encode_example(Talk("x", tuple(MESSAGES)), byte_tokenizer())


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"conversations": [{"from": "cat", "value": "x"}]}, "'from' is 'cat'"),
        ({"conversations": "x"}, "'conversations' must be a list"),
        ({"instruction": 3, "output": "x"}, "'instruction' must be a string"),
        ({"messages": [1]}, "'messages' must be a list"),
        ({"prompt": "\ud800", "completion": "x"}, "half a surrogate pair"),
    ],
)
def test_what_is_no_conversation(row: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        talk_of("line 1", row)


def test_packed_into_sequences_with_what_counts(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
            for n in range(30)]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    corpus, tokenizer = load_corpus(str(file)), chatty()
    flat = [token for ids in tokenize(corpus, tokenizer) for token in ids]
    found = calibration_batches(corpus, tokenizer, 5, 16)
    assert found.counts is not None
    assert found.counts.shape == found.tokens.shape == (5, 16)
    flags = [own for _, counts in tokenize_counted(corpus, tokenizer) for own in counts or ()]
    for row, own in zip(found.tokens.tolist(), found.counts.tolist(), strict=True):
        places = [i for i in range(0, len(flat) - 15, 16) if flat[i : i + 16] == row]
        assert own in [flags[i : i + 16] for i in places]
    (tmp_path / "plain.jsonl").write_text('{"text": "The thin thief thinks."}\n' * 40, encoding="utf-8")
    mixed = calibration_of(f"{file},{tmp_path / 'plain.jsonl'}", lambda: tokenizer, 8, 16, 0, 259)
    assert mixed.counts is not None
    whole = mixed.counts.all(1)
    assert whole.sum() == 4  # plain text counts everywhere
    assert not torch.equal(mixed.counts, torch.ones_like(mixed.counts))


def test_a_tasks_questions_with_their_answers(tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    rows = [{"query": f"Is {n} odd?", "choices": ["yes", "no"], "gold": n % 2} for n in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = byte_tokenizer()
    for half, numbers in (("", range(6)), ("@even", range(0, 6, 2)), ("@odd", range(1, 6, 2))):
        found = tokenize_counted(load_corpus(f"task:{file}{half}"), tokenizer)
        said = ["yes", "no"]
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in found]
        assert texts == [f"Is {n} odd? {said[n % 2]}" for n in numbers]
        assert [counted(ids, own or [], tokenizer) for ids, own in found] == [f" {said[n % 2]}" for n in numbers]
    with pytest.raises(InputError, match="names no file of questions"):
        check_there("task:arc_easy")
    with pytest.raises(InputError, match="does not exist"):
        check_there("task:gone.jsonl")


def test_the_formats_of_a_file(tmp_path: Path) -> None:
    rows = [{"text": "The first, one"}, {"text": 'the "other"\nline'}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, ["text"])
        writer.writeheader()
        writer.writerows(rows)
    for ending in ("jsonl", "json", "jsonl.gz", "csv"):
        with case(ending):
            assert load_corpus(str(tmp_path / f"a.{ending}")).documents == tuple(row["text"] for row in rows)
    zstandard = pytest.importorskip("zstandard", reason="zstandard isn't installed")
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    assert load_corpus(str(tmp_path / "a.jsonl.zst")).documents == tuple(row["text"] for row in rows)


BAD = {
    "a.json": (b'{"text": "x"}', "is not a list"),
    "b.json": (b"[1]", "entry 1 is not a JSON object"),
    "c.json": (b"[", "is not JSON"),
    "a.jsonl.gz": (gzip.compress(b'{"text": "x"}')[:-6], "is not a whole compressed file"),
    "b.jsonl.gz": (b"plain", "is not a whole compressed file"),
    "a.csv": (b"text,text\nx,y\n", "a column is there twice"),
    "b.csv": (b"text\nx,y\n", "row 1 doesn't have as many values"),
    "c.csv": (b'text\n"x\n', "is not CSV"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    content, says = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        load_corpus(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_file_that_holds_more_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.data import rows

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b" " * 100_000))
    monkeypatch.setattr(rows, "MOST_BYTES", 50_000)
    with pytest.raises(InputError, match="holds more than 2 GB"):
        load_corpus(str(tmp_path / "a.jsonl.gz"))
