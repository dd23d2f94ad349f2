"""What is evaluated: documents cut at the context, or windows of one running text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.data.corpus import Corpus
from secateur.data.tokens import Tokens, check_ids, span_bytes, tokenize_with_bytes
from secateur.errors import InputError
from secateur.model.heads import unused_positions

LONGEST = 4096  # tokens; the default limit where a context is longer, as its logits alone would fill a machine

_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")


@dataclass(frozen=True)
class Window:
    """Tokens that go through the model together. All but the first are predicted, or those of them that count.

    `text_bytes` = UTF-8 bytes of the text behind the predicted tokens; None where nothing can tell. `counts`: of each
    token, whether it does; None where all do.
    """

    ids: tuple[int, ...]
    text_bytes: float | None
    counts: tuple[bool, ...] | None = None

    @property
    def predicted(self) -> int:
        return len(self.ids) - 1 if self.counts is None else sum(self.counts[1:])


def context_length(config: Any) -> int | None:
    """Gives the longest sequence, in tokens, that a model's configuration allows; None if it names no limit."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for field in _CONTEXT_FIELDS:
        value = getattr(text, field, None)
        if isinstance(value, int) and value > 0:
            return max(1, value - unused_positions(text))
    return None


def evaluation_length(config: Any, length: int | None = None) -> int:
    """Gives the tokens of a window: `length` if given, else the model's context, but at most `LONGEST`.

    Raises:
        InputError: `length` is under 2 or over the context.
    """
    context = context_length(config)
    if length is None:
        return min(context or LONGEST, LONGEST)
    if length < 2 or (context is not None and length > context):
        raise InputError(f"--length {length} is out of range; this model takes 2 to {context or 'any number of'}")
    return length


def windows(corpus: Corpus, tokenizer: Any | None, length: int, vocab_size: int) -> list[Window]:
    """Cut a corpus into windows of at most `length` tokens.

    Documents: each alone, with BOS if the tokenizer has one, cut at `length`; what is beyond is not evaluated.
    A stream: windows that don't overlap, each with BOS first if the tokenizer has one. Then every token of the
    text is predicted once; without a BOS, the first token of each window is not predicted. Of conversations only the
    answers count.

    Raises:
        InputError: no window has two tokens, or a token id is outside the vocabulary.
    """
    documents = tokenize_with_bytes(corpus, tokenizer)
    check_ids([document.ids for document in documents], vocab_size, corpus.name)
    bos = tokenizer.bos_token_id if tokenizer is not None else None
    found: list[Window] = []
    for document in documents:
        has_bos = bos is not None and document.ids[:1] == [bos]
        for first, last in _borders(len(document.ids), length, corpus.stream, has_bos):
            ids = document.ids[first:last]
            if has_bos and first:
                ids = [document.ids[0], *ids]
            if document.counts is not None:
                window = Window(tuple(ids), None, tuple(document.counts[first:last]))
            elif len(ids) > 1:
                window = _window(document, ids, last, tokenizer)
            else:
                continue
            if window.predicted > 0:
                found.append(window)
    if not found:
        raise InputError(f"{corpus.name} has no document of two tokens or more; there is nothing to predict")
    return found


def _borders(count: int, length: int, stream: bool, has_bos: bool) -> list[tuple[int, int]]:
    if not stream:
        return [(0, min(length, count))]
    if not has_bos:
        return [(first, min(first + length, count)) for first in range(0, count, length)]
    body = [(first, min(first + length - 1, count)) for first in range(1, count, length - 1)]
    return [(0, body[0][1]), *body[1:]] if body else []  # the text's own BOS opens the first window


def _window(document: Tokens, ids: list[int], last: int, tokenizer: Any | None) -> Window:
    return Window(tuple(ids), span_bytes(document, last - len(ids) + 1, last, tokenizer))
