"""How llama.cpp cuts text into words before byte-level BPE merges, by the names that a GGUF file may say.

llama.cpp knows these rules by name alone, so a file has to name the right one. Which one that is, is found by trying:
the model's tokenizer with its own rule against the same tokenizer with each of these, on texts. The expressions are
facts of llama.cpp, in the spelling of the package `tokenizers`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LOWER = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# Name -> expressions, applied one after the other, and whether a word that is a token whole skips the merges.
RULES: dict[str, tuple[tuple[str, ...], bool]] = {
    "gpt-2": ((_GPT2,), False),
    "smollm": ((r"\p{N}", _GPT2), False),
    "llama-bpe": ((rf"{_LOWER}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",), True),
    "qwen2": ((rf"{_LOWER}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",), False),
    "gpt-4o": ((rf"{_CASED[0]}{_LOWER}?|{_CASED[1]}{_LOWER}?|\p{{N}}{{1,3}}|{_SLASH}",), False),
    "tekken": ((rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_SLASH}",), True),
    "falcon": ((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"), False),
}


def with_rule(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """A copy of a byte-level BPE tokenizer that cuts text as llama.cpp does under this name."""
    expressions, whole = RULES[name]
    told = json.loads(tokenizer.to_str())
    told["model"]["ignore_merges"] = whole
    told["normalizer"] = None  # llama.cpp has none for byte-level BPE
    made = Tokenizer.from_str(json.dumps(told))
    cuts: list[Any] = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    made.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return made


def alike(one: Tokenizer, other: Tokenizer, texts: Sequence[str]) -> int:
    """How many texts two tokenizers give the same ids for, special ones left out."""
    first = one.encode_batch(list(texts), add_special_tokens=False)
    second = other.encode_batch(list(texts), add_special_tokens=False)
    return sum(a.ids == b.ids for a, b in zip(first, second, strict=True))


def name_of(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[str, int]:
    """The name whose rule tokenises most of the texts as this tokenizer does, and how many those are."""
    backend = copy.deepcopy(tokenizer)
    counts = {name: alike(backend, with_rule(backend, name), texts) for name in RULES}
    best = max(counts, key=lambda name: counts[name])
    return best, counts[best]
