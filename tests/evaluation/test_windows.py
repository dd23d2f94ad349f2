from __future__ import annotations

import pytest
from transformers import GPT2Config, LlamaConfig, MambaConfig

from secateur.data.corpus import Corpus, from_texts
from secateur.errors import InputError
from secateur.evaluation.windows import LONGEST, context_length, evaluation_length, windows
from tests.small import byte_tokenizer

BOS = 258


def stream(text: str) -> Corpus:
    return Corpus("x", "", documents=(text,), stream=True)


def test_documents_are_cut_at_the_length() -> None:
    found = windows(from_texts("x", ["abcdefgh", "ab"]), byte_tokenizer(), length=5, vocab_size=259)
    assert [len(window.ids) for window in found] == [5, 3]
    assert [window.ids[0] for window in found] == [BOS, BOS]
    assert [window.text_bytes for window in found] == [4, 2]


def test_documents_without_bos_do_not_count_their_first_token() -> None:
    found = windows(from_texts("x", ["éabc", "a"]), byte_tokenizer(bos=False), length=3, vocab_size=259)
    assert [len(window.ids) for window in found] == [3]  # one token predicts nothing
    assert found[0].text_bytes == 2


@pytest.mark.parametrize("length", [2, 3, 5, 9, 10, 11, 50])
def test_a_stream_predicts_every_token_once(length: int) -> None:
    text = "abcdéfghij"
    tokenizer = byte_tokenizer()
    found = windows(stream(text), tokenizer, length, vocab_size=259)
    assert all(window.ids[0] == BOS and len(window.ids) <= length for window in found)
    assert tokenizer.decode([token for window in found for token in window.ids[1:]]) == text
    assert sum(window.text_bytes or 0 for window in found) == len(text.encode())


def test_a_stream_without_bos() -> None:
    found = windows(stream("abcdefg"), byte_tokenizer(bos=False), length=3, vocab_size=259)
    assert [len(window.ids) for window in found] == [3, 3]  # the seventh has nobody to be predicted from
    assert [window.text_bytes for window in found] == [2, 2]


def test_token_ids_without_a_tokenizer_have_no_bytes() -> None:
    found = windows(Corpus("x", "", ids=((1, 2, 3), (4,))), None, length=2, vocab_size=5)
    assert [(window.ids, window.text_bytes) for window in found] == [((1, 2), None)]


def test_token_ids_with_a_tokenizer_are_decoded() -> None:
    tokenizer = byte_tokenizer()
    ids = tuple(tokenizer("héllo", add_special_tokens=False)["input_ids"])
    found = windows(Corpus("x", "", ids=((BOS, *ids), ids)), tokenizer, length=9, vocab_size=259)
    assert [window.text_bytes for window in found] == [6, 5]


def test_nothing_to_predict() -> None:
    with pytest.raises(InputError, match="no document of two tokens"):
        windows(from_texts("x", ["a"]), byte_tokenizer(bos=False), length=3, vocab_size=259)


def test_a_foreign_tokenizer() -> None:
    with pytest.raises(InputError, match=r"token id 258, but the model knows 0\.\.99"):
        windows(from_texts("x", ["a"]), byte_tokenizer(), length=3, vocab_size=100)


def test_context_of_a_config() -> None:
    assert context_length(LlamaConfig(max_position_embeddings=77)) == 77
    assert context_length(GPT2Config(n_positions=88)) == 88
    assert context_length(MambaConfig()) is None


def test_length_of_a_window() -> None:
    small, large = LlamaConfig(max_position_embeddings=77), LlamaConfig(max_position_embeddings=10**6)
    assert evaluation_length(small) == 77
    assert evaluation_length(small, 20) == 20
    assert evaluation_length(large) == LONGEST
    assert evaluation_length(large, 10**5) == 10**5
    assert evaluation_length(MambaConfig()) == LONGEST
    for length in (0, 1, 78):
        with pytest.raises(InputError, match=f"--length {length} is out of range; this model takes 2 to 77"):
            evaluation_length(small, length)
