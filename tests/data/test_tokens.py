from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from secateur.data.corpus import Corpus, from_texts
from secateur.data.documents import load_corpus
from secateur.data.tokens import BATCH, Tokens, check_ids, span_bytes, tokenize, tokenize_with_bytes
from secateur.errors import InputError
from tests.small import byte_tokenizer

BOS = 258
TEXTS = ["the café", "日本 😀 ok ", "a", " \n b  "]


@pytest.mark.parametrize("adds_bos", [False, True])
def test_every_document_has_one_bos(adds_bos: bool) -> None:
    rows = tokenize(from_texts("x", [*TEXTS, "<s>spelled out"]), byte_tokenizer(adds_bos=adds_bos))
    assert all(row[0] == BOS and BOS not in row[1:] for row in rows)


def test_no_bos_without_a_bos_token() -> None:
    assert all(BOS not in row for row in tokenize(from_texts("x", TEXTS), byte_tokenizer(bos=False)))


def test_order_over_many_batches() -> None:
    texts = [str(n) for n in range(2 * BATCH + 3)]
    tokenizer = byte_tokenizer()
    rows = tokenize(from_texts("x", texts), tokenizer)
    assert [tokenizer.decode(row[1:]) for row in rows] == texts


def test_ids_are_left_alone() -> None:
    corpus = Corpus("x", "", ids=((5, 6), (7,)))
    assert tokenize(corpus, None) == [[5, 6], [7]]
    assert tokenize(corpus, byte_tokenizer()) == [[5, 6], [7]]


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(InputError, match="the model has no tokenizer; give data with 'input_ids'"):
        tokenize(from_texts("x", ["a"]), None)


def test_a_long_text_brings_no_warning(capfd: pytest.CaptureFixture[str]) -> None:
    tokenize(from_texts("x", ["a" * 1000]), byte_tokenizer())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_a_whole_document(text: str) -> None:
    tokens = tokenize_with_bytes(from_texts("x", [text]), byte_tokenizer())[0]
    assert span_bytes(tokens, 1, len(tokens.ids), None) == len(text.encode())


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_add_up_over_any_cut(text: str) -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenize_with_bytes(from_texts("x", [text]), tokenizer)[0]
    last = len(tokens.ids)
    for cut in range(1, last + 1):
        before, after = span_bytes(tokens, 1, cut, None), span_bytes(tokens, cut, last, None)
        assert before is not None
        assert after is not None
        assert before + after == len(text.encode())
        # One token a byte, but for "th" and "é", which hold two.
        merged = tokenizer.convert_ids_to_tokens(tokens.ids[1:cut])
        assert before == sum(2 if token in ("th", "Ã©") else 1 for token in merged)


def test_bytes_by_decoding_where_positions_are_unknown() -> None:
    tokenizer = byte_tokenizer()
    text = "the other café"
    known = tokenize_with_bytes(from_texts("x", [text]), tokenizer)[0]
    unknown = Tokens(known.ids)
    for first in range(1, len(known.ids)):
        assert span_bytes(unknown, first, len(known.ids), tokenizer) == span_bytes(known, first, len(known.ids), None)
    assert span_bytes(unknown, 1, 3, None) is None


@pytest.mark.parametrize("name", ["stories260K", "stories3M-fp16"])
def test_bytes_of_real_documents_cut_short(shared: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / name)
    corpus = load_corpus(str(shared / "data/tinystories/eval.jsonl"))
    for tokens, text in zip(tokenize_with_bytes(corpus, tokenizer), corpus.documents or (), strict=True):
        assert tokens.ids[0] == tokenizer.bos_token_id
        assert tokens.ids[1] != tokenizer.bos_token_id
        for last in (10, 50, len(tokens.ids)):
            kept = tokenizer.decode(tokens.ids[1:last]) if last < len(tokens.ids) else text
            if "\ufffd" not in kept:
                assert span_bytes(tokens, 1, last, None) == len(kept.encode())


def test_ids_outside_of_the_vocabulary() -> None:
    check_ids([[0, 9], []], 10, "x")
    with pytest.raises(InputError, match=r"x: document 2 has token id 10, but the model knows 0\.\.9"):
        check_ids([[0], [10]], 10, "x")
    with pytest.raises(InputError, match="token id -1"):
        check_ids([[-1, 3]], 10, "x")
