"""Vocabularies of GGUF files: orders of merges, kinds of tokens, and the pre-tokenizer that is found by trying."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from secateur.data.embedded import embedded_path
from secateur.errors import UnsupportedModelError
from secateur.export.gguf.pre_tokenizers import RULES, name_of, with_rule
from secateur.export.gguf.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    vocabulary_of,
)
from secateur.export.reference import probe_texts


def gemma_like() -> PreTrainedTokenizerFast:
    """Characters with bytes to fall back on, no space in front, spaces as a token of their own: as Gemma's."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(probe_texts(), trainers.BpeTrainer(vocab_size=700, special_tokens=special))
    told = backend.to_str()
    backend = Tokenizer.from_str(told)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    )


def embedded() -> Vocabulary:
    return vocabulary_of(AutoTokenizer.from_pretrained(embedded_path()), 2050, probe_texts())


def test_byte_level_bpe() -> None:
    found = embedded()
    assert (found.model, found.pre, found.notes) == ("gpt2", "gpt-2", [])
    assert found.kinds[:3] == [CONTROL] * 3
    assert found.kinds[3] == NORMAL
    assert found.kinds[2048:] == [UNUSED] * 2
    assert found.tokens[2049] == "[UNUSED2049]"
    assert found.adds == {"bos": True, "eos": False}
    assert found.scores is None
    assert len(found.merges or ()) == 1789


def test_scores_are_the_ranks_of_merges(whole: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(whole / "models" / "stories260K")
    found = vocabulary_of(tokenizer, 512, probe_texts())
    assert (found.model, found.space_prefix, found.adds["bos"]) == ("llama", True, True)
    assert found.kinds[0] == UNKNOWN
    assert found.kinds[3:259] == [BYTE] * 256
    assert found.scores is not None
    by_token = dict(zip(found.tokens, found.scores, strict=True))
    assert by_token["▁t"] == 0.0  # the first merge
    made = [score for score in found.scores[259:] if score > -1e6]
    assert made == sorted(made, reverse=True)


def test_a_vocabulary_like_gemmas() -> None:
    found = vocabulary_of(gemma_like(), 700, probe_texts())
    assert (found.model, found.space_prefix) == ("llama", False)
    assert found.special["bos"] == 2
    assert found.adds == {"bos": False, "eos": False}


def test_tokens_that_users_added_are_told_from_special_ones() -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    tokenizer.add_tokens(["<think>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    found = vocabulary_of(tokenizer, 2050, probe_texts())
    assert found.kinds[2048:] == [USER_DEFINED, CONTROL]


@pytest.mark.parametrize("name", RULES)
def test_a_pre_tokenizer_is_found_by_trying(name: str) -> None:
    backend = AutoTokenizer.from_pretrained(embedded_path()).backend_tokenizer
    own = with_rule(backend, name)
    found, same = name_of(own, probe_texts())
    assert same == 100
    # Some differ in nothing that so small a vocabulary shows; none may be found that tokenises otherwise.
    assert (
        with_rule(backend, found).encode("It's 12345\n\n  foo(BAR)").ids == own.encode("It's 12345\n\n  foo(BAR)").ids
    )


def test_tokenizers_that_llama_cpp_has_not_are_refused() -> None:
    backend = AutoTokenizer.from_pretrained(embedded_path()).backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[aeiou]"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    with pytest.raises(UnsupportedModelError, match="no pre-tokenizer that cuts text as this model's"):
        vocabulary_of(tokenizer, 2048, probe_texts())
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(UnsupportedModelError, match="the tokenizer is WordLevel"):
        vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=words), 2, probe_texts())
    with pytest.raises(UnsupportedModelError, match="has 2048 tokens and the model 100"):
        vocabulary_of(AutoTokenizer.from_pretrained(embedded_path()), 100, probe_texts())
