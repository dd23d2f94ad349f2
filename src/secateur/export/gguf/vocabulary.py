"""The tokenizer of a model as a GGUF file holds it: tokens with scores or merges, kinds, and special ones.

Two kinds are known to llama.cpp and made here: BPE on characters with bytes to fall back on (SentencePiece's, Llama 2
and Gemma), whose merges become scores, and byte-level BPE (GPT-2, Llama 3, Qwen).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from secateur.errors import UnsupportedModelError
from secateur.export.gguf.pre_tokenizers import name_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's kinds of tokens
NO_MERGE = -1e6  # the score of a token that no merge makes: below that of every one that is made
_SPECIAL = ("bos", "eos", "unk", "pad", "sep", "mask")


class Vocabulary(NamedTuple):
    """What a GGUF file says of a tokenizer.

    Args:
        model: `llama` (characters) or `gpt2` (bytes).
        pre: name of the rule that cuts text into words.
        scores: of each token, for `llama`; a merge that comes earlier has a higher one.
        special: role -> token id.
        adds: role (bos, eos) -> whether it's put around a text.
        notes: what the report should say.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None
    merges: list[str] | None
    special: dict[str, int]
    adds: dict[str, bool]
    space_prefix: bool
    chat_template: str | None
    notes: list[str]


def vocabulary_of(tokenizer: Any, size: int, texts: Sequence[str], eos: Any = None) -> Vocabulary:
    """The vocabulary of a `transformers` tokenizer.

    Args:
        size: rows of the embedding; ids that the tokenizer has no token for are unused.
        texts: to find the name of the pre-tokenizer by.
        eos: id, or ids, that the model's configuration ends a text with.

    Raises:
        UnsupportedModelError: llama.cpp has no tokenizer like this.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedModelError(f"tokenizer {type(tokenizer).__name__} has no tokenizer.json to be read from")
    told = json.loads(backend.to_str())
    model = told["model"]
    if model.get("type") != "BPE":
        raise UnsupportedModelError(
            f"the tokenizer is {model.get('type')}, and for GGUF files BPE alone is made: llama.cpp would cut text "
            "otherwise"
        )
    held = dict(backend.get_vocab(with_added_tokens=True))
    if held and max(held.values()) >= size:
        raise UnsupportedModelError(f"the tokenizer has {max(held.values()) + 1} tokens and the model {size}")
    names = {index: token for token, index in held.items()}
    tokens = [names.get(index, f"[UNUSED{index}]") for index in range(size)]
    added = {int(token["id"]): bool(token["special"]) for token in told["added_tokens"]}
    merges = [list(m) if isinstance(m, list) else m.split(" ", 1) for m in model["merges"]]
    special, adds = _special(tokenizer, eos), _adds(tokenizer)
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    if isinstance(tokenizer.chat_template, dict):
        template = tokenizer.chat_template.get("default")
    if model.get("byte_fallback"):
        kinds = [_kind(i, tokens[i], i in names, added, model.get("unk_token"), True) for i in range(size)]
        scores = _scores(tokens, kinds, merges)
        prefix = _prepends(told)
        return Vocabulary(
            "llama", "default", tokens, kinds, scores, None, special, adds, prefix, template, _left(told, False)
        )
    if not _is_byte_level(told):
        raise UnsupportedModelError(
            "the tokenizer is BPE without bytes to fall back on and not byte-level: llama.cpp has none like it"
        )
    pre, notes = _pre_tokenizer(backend, texts)
    kinds = [_kind(i, tokens[i], i in names, added, None, False) for i in range(size)]
    joined = [" ".join(merge) for merge in merges]
    prefix = _adds_prefix_space(told)
    return Vocabulary(
        "gpt2", pre, tokens, kinds, None, joined, special, adds, prefix, template, [*notes, *_left(told, True)]
    )


def _scores(tokens: list[str], kinds: list[int], merges: list[list[str]]) -> list[float]:
    """Minus the rank of the merge that makes a token: llama.cpp merges what has the highest score first.

    With any other numbers, the training's log-probabilities too, it merges in another order than the tokenizer.
    """
    rank: dict[str, int] = {}
    for place, (left, right) in enumerate(merges):
        rank.setdefault(left + right, place)
    return [
        -float(rank[token]) if token in rank else (NO_MERGE if kind == NORMAL else 0.0)
        for token, kind in zip(tokens, kinds, strict=True)
    ]


def _kind(index: int, token: str, there: bool, added: dict[int, bool], unknown: str | None, bytes_: bool) -> int:
    if not there:
        return UNUSED
    if index in added:
        if unknown is not None and token == unknown:
            return UNKNOWN
        return CONTROL if added[index] else USER_DEFINED
    if bytes_ and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return BYTE
    return NORMAL


def _special(tokenizer: Any, eos: Any) -> dict[str, int]:
    found = {role: getattr(tokenizer, f"{role}_token_id", None) for role in _SPECIAL}
    if found["eos"] is None:
        found["eos"] = eos[0] if isinstance(eos, list) and eos else eos
    return {role: int(index) for role, index in found.items() if isinstance(index, int)}


def _adds(tokenizer: Any) -> dict[str, bool]:
    """What the tokenizer puts around a text, by trying."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    extra = len(whole) - len(plain)
    first = extra > 0 and whole[0] == tokenizer.bos_token_id and whole[1 : 1 + len(plain)] == plain
    last = extra > 0 and whole[-1] == tokenizer.eos_token_id and whole[-1 - len(plain) : -1] == plain
    if extra != first + last:
        raise UnsupportedModelError(
            f"the tokenizer puts tokens around a text that are neither BOS nor EOS: {whole} for {plain}"
        )
    return {"bos": bool(first), "eos": bool(last)}


def _parts(told: dict[str, Any], key: str, inner: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer, and those in a sequence of them."""
    found = told.get(key)
    if found is None:
        return []
    return list(found[inner]) if found.get("type") == "Sequence" else [found]


def _prepends(told: dict[str, Any]) -> bool:
    """Whether a text gets a space in front."""
    if any(part["type"] == "Prepend" for part in _parts(told, "normalizer", "normalizers")):
        return True
    return any(
        part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never"
        for part in _parts(told, "pre_tokenizer", "pretokenizers")
    )


def _is_byte_level(told: dict[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(told, "pre_tokenizer", "pretokenizers"))


def _adds_prefix_space(told: dict[str, Any]) -> bool:
    parts = _parts(told, "pre_tokenizer", "pretokenizers")
    return any(part["type"] == "ByteLevel" and part.get("add_prefix_space") for part in parts)


def _pre_tokenizer(backend: Tokenizer, texts: Sequence[str]) -> tuple[str, list[str]]:
    """The name that llama.cpp has for how this tokenizer cuts text into words.

    Raises:
        UnsupportedModelError: it has none that cuts nearly all of the texts alike.
    """
    normalised = [str(backend.normalizer.normalize_str(t)) if backend.normalizer else t for t in texts]
    name, same = name_of(backend, normalised)
    if same < 0.9 * len(texts):
        raise UnsupportedModelError(
            f"llama.cpp has no pre-tokenizer that cuts text as this model's: the nearest, {name}, tokenises {same} "
            f"of {len(texts)} texts alike"
        )
    if same < len(texts):
        return name, [f"pre-tokenizer {name}, the nearest: {same} of {len(texts)} texts alike"]
    return name, []


def _left(told: dict[str, Any], byte_level: bool) -> list[str]:
    """What the tokenizer does to a text first and llama.cpp doesn't."""
    fine = {"Replace", "Prepend"} if not byte_level else set()
    left = [p["type"] for p in _parts(told, "normalizer", "normalizers") if p["type"] not in fine]
    return [f"llama.cpp doesn't normalise text first, as this tokenizer does ({', '.join(left)})"] if left else []
