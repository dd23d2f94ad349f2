"""Contexts and continuations as token ids, by the rules of EleutherAI's lm-eval, so that figures can be compared.

White space at the end of a context goes to the continuation. Both are tokenised together, and what comes after the
context's own tokens is the continuation. Special tokens are those that the tokenizer adds by itself at the start. An
empty context is BOS, or EOS where there is none. What doesn't fit loses its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from secateur.data.tokens import check_ids
from secateur.errors import InputError

AT_ONCE = 1024  # texts a call: the Rust tokenizers work on them in parallel


class Pair(NamedTuple):
    """Token ids of a context, and of what follows it; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


def encode_pairs(
    texts: Sequence[tuple[str, str]], tokenizer: Any, vocab_size: int, longest: int, name: str
) -> list[Pair]:
    """The pairs as token ids, at most `longest` + 1 of both together.

    Args:
        longest: tokens that the model takes; the last one is predicted and never goes in.
        name: of the task, for errors.

    Raises:
        InputError: a continuation of no token or of more than the context holds, or ids outside the vocabulary.
    """
    moved = [_moved(*pair) for pair in texts]
    wanted = dict.fromkeys(text for context, end in moved for text in ((context, context + end) if context else ()))
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = dict(zip(wanted, encode(list(wanted), tokenizer, name, start), strict=True))
    alone = list(dict.fromkeys(end for context, end in moved if not context))
    bare = dict(zip(alone, encode(alone, tokenizer, name, start, special=False), strict=True))
    found = []
    for number, (context, end) in enumerate(moved, 1):
        before = ids[context] if context else [] if start is None else [start]
        after = ids[context + end][len(before) :] if context else bare[end]
        if not context and after[:1] == before:
            after = after[1:]
        if not before or not after:
            what = "continuation" if before else "context"
            raise InputError(f"{name}: the {what} of option {number} is no token of its own to the tokenizer")
        if len(after) > longest:
            raise InputError(f"{name}: option {number} has {len(after)} tokens, and the model's context is {longest}")
        cut = max(0, len(before) + len(after) - longest - 1)
        found.append(Pair(tuple(before[cut:]), tuple(after)))
    check_ids([[*pair.context, *pair.continuation] for pair in found], vocab_size, name)
    return found


def _moved(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def encode(
    texts: list[str], tokenizer: Any, name: str, start: int | None = None, special: bool = True
) -> list[list[int]]:
    """Token ids, with the special tokens that the tokenizer adds at the start, unless a text begins with `start`."""
    if start is None or not special:
        return _encoded(texts, tokenizer, name, special)
    spelled = tokenizer.decode([start])
    own = [index for index, text in enumerate(texts) if spelled and text.startswith(spelled)]
    found = _encoded(texts, tokenizer, name, True)
    for index, ids in zip(own, _encoded([texts[i] for i in own], tokenizer, name, False), strict=True):
        found[index] = ids
    return found


def _encoded(texts: list[str], tokenizer: Any, name: str, special: bool) -> list[list[int]]:
    found: list[list[int]] = []
    ends = _ends(tokenizer) if special else 0
    for first in range(0, len(texts), AT_ONCE):
        try:
            batch = tokenizer(
                texts[first : first + AT_ONCE],
                add_special_tokens=special,
                return_attention_mask=False,
                verbose=False,
            )
        except Exception as error:  # whatever its parser raises
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{name}: the model's tokenizer can't read it ({reason})") from None
        found += [ids[: len(ids) - ends] for ids in batch["input_ids"]]
    return found


def _ends(tokenizer: Any) -> int:
    """How many special tokens the tokenizer puts after a text: a continuation comes there."""
    special, plain = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    for count in range(len(special) - len(plain) + 1):
        if special[len(special) - count - len(plain) : len(special) - count] == plain:
            return count
    return 0
