"""Documents as token ids, BOS first, and how many bytes of text any run of those tokens stands for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from secateur.data.conversations import encode_example
from secateur.data.corpus import Corpus
from secateur.errors import InputError
from secateur.report.terminal.listening import tell

BATCH = 256  # documents a call: the Rust tokenizers work on them in parallel
PIECE = 2**22  # characters that go through a tokenizer at once: it needs hundreds of bytes for each


@dataclass(frozen=True)
class Tokens:
    """One document. `ends[i]` = UTF-8 bytes of the text up to the end of token i, BOS counting none.

    `ends` is None where the source came tokenised or the tokenizer can't tell positions. `counts`: which tokens count
    where a loss is taken; None where all do.
    """

    ids: list[int]
    ends: NDArray[np.float64] | None = None
    counts: list[bool] | None = None


def tokenize(corpus: Corpus, tokenizer: Any | None) -> list[list[int]]:
    """Token ids of each document, with one BOS first if the tokenizer has a BOS token.

    Documents that came tokenised are given back as they are: nothing is added to them.

    Raises:
        InputError: the corpus is text and there is no tokenizer.
    """
    return [ids for ids, _ in tokenize_counted(corpus, tokenizer)]


def tokenize_counted(corpus: Corpus, tokenizer: Any | None) -> list[tuple[list[int], list[bool] | None]]:
    """As `tokenize`, and for each token whether it counts where a loss is taken; None where all do.

    Raises:
        InputError: the corpus is text and there is no tokenizer, or its conversations fit no chat template.
    """
    if corpus.ids is not None:
        return [(list(ids), None) for ids in corpus.ids]
    if corpus.examples is not None:
        if tokenizer is None:
            raise InputError(f"{corpus.name} is text and the model has no tokenizer; give data with 'input_ids'")
        return [encode_example(example, tokenizer) for example in corpus.examples]
    return [(ids, None) for batch in _encoded(corpus, tokenizer) for ids in batch["input_ids"]]


def joined_ids(corpus: Corpus, tokenizer: Any | None) -> NDArray[np.int32]:
    """The ids of all documents in a row."""
    return np.fromiter(chain.from_iterable(tokenize(corpus, tokenizer)), dtype="<i4")


def key_of(corpus: Corpus, tokenizer: Any) -> str | None:
    """A hash of what decides the ids of a corpus that comes with Python; None where they aren't to be kept.

    Tokenising it takes seconds, of which a draw of a few sequences would need a thousandth.
    """
    rules = getattr(tokenizer, "backend_tokenizer", None)
    if rules is None or not corpus.shipped or corpus.documents is None:
        return None
    total = hashlib.sha256(f"{tokenizer.bos_token_id} {version('tokenizers')} {rules.to_str()}".encode())
    for text in corpus.documents:  # not the corpus's own hash, which a part of it has too
        total.update(f"\0{text}".encode(errors="surrogatepass"))
    return total.hexdigest()[:32]


def tokenize_with_bytes(corpus: Corpus, tokenizer: Any | None) -> list[Tokens]:
    """As `tokenize`, with the byte position of each token. For evaluation, which reports bits per byte."""
    if corpus.ids is not None:
        return [Tokens(list(ids)) for ids in corpus.ids]
    if corpus.examples is not None:
        return [Tokens(ids, counts=counts) for ids, counts in tokenize_counted(corpus, tokenizer)]
    found: list[Tokens] = []
    for batch in _encoded(corpus, tokenizer, positions=getattr(tokenizer, "is_fast", False)):
        offsets: Sequence[list[tuple[int, int]] | None] = batch["offset_mapping"] or [None] * len(batch["input_ids"])
        for ids, spans, text in zip(batch["input_ids"], offsets, batch["texts"], strict=True):
            found.append(Tokens(ids, None if spans is None else _byte_ends(text, spans)))
    return found


def span_bytes(tokens: Tokens, first: int, last: int, tokenizer: Any | None) -> float | None:
    """UTF-8 bytes of the text behind tokens first .. last - 1 of a document, or None if nothing can tell.

    Exact where a token ends between characters, and where a character is cut in byte tokens. Where the cut
    splits a character and a byte-level BPE merge crosses its border, up to 3 bytes off.
    """
    if tokens.ends is not None:
        before = tokens.ends[first - 1] if first else 0.0
        return float(tokens.ends[last - 1] - before) if last > first else 0.0
    if tokenizer is None:
        return None
    # From one token earlier, as a decoder may strip the white space that a text begins with.
    start = max(first - 1, 0)
    whole, before_it = tokens.ids[start:last], tokens.ids[start:first]
    return float(_decoded_bytes(whole, tokenizer) - _decoded_bytes(before_it, tokenizer))


def check_ids(documents: list[list[int]], vocab_size: int, name: str) -> None:
    """Raise InputError if a token id isn't one of the model's `vocab_size` (a CUDA kernel would just die)."""
    for number, ids in enumerate(documents, 1):
        if ids and (min(ids) < 0 or max(ids) >= vocab_size):
            odd = min(ids) if min(ids) < 0 else max(ids)
            raise InputError(
                f"{name}: document {number} has token id {odd}, but the model knows 0..{vocab_size - 1};"
                " use data and a tokenizer made for this model"
            )


class Encoded(TypedDict):
    """Some documents, tokenised."""

    texts: list[str]
    input_ids: list[list[int]]
    offset_mapping: list[list[tuple[int, int]]] | None


def _encoded(corpus: Corpus, tokenizer: Any | None, positions: bool = False) -> Iterator[Encoded]:
    if tokenizer is None:
        raise InputError(f"{corpus.name} is text and the model has no tokenizer; give data with 'input_ids'")
    documents, bos = corpus.documents or (), tokenizer.bos_token_id
    for start in range(0, len(documents), BATCH):
        tell(f"tokenising {corpus.name}", start, len(documents))
        texts = list(documents[start : start + BATCH])
        rows, spans = _joined(texts, tokenizer, positions, corpus.name)
        for index, ids in enumerate(rows):
            if bos is not None and ids[:1] != [bos]:  # a text may spell its BOS out
                ids.insert(0, bos)
                if spans is not None:
                    spans[index].insert(0, (0, 0))
        yield {"texts": texts, "input_ids": rows, "offset_mapping": spans}


def _joined(
    texts: list[str], tokenizer: Any, positions: bool, name: str
) -> tuple[list[list[int]], list[list[tuple[int, int]]] | None]:
    """Ids of each text, and where in it each token is; a text that is very long goes through in pieces."""
    pieces = [(index, start, text[start:end]) for index, text in enumerate(texts) for start, end in _cuts(text)]
    try:
        # Without the tokenizer's own special tokens: some add BOS, some don't, some add an EOS too.
        batch = tokenizer(
            [piece for _, _, piece in pieces],
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=positions,
            verbose=False,  # documents may be longer than the context; they are cut later
        )
    except Exception as error:  # whatever its parser raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{name}: the model's tokenizer can't read it ({reason})") from None
    found, spans = batch["input_ids"], batch.get("offset_mapping")
    if len(pieces) == len(texts):
        return found, spans
    rows: list[list[int]] = [[] for _ in texts]
    places: list[list[tuple[int, int]]] = [[] for _ in texts]
    for number, (index, start, _) in enumerate(pieces):
        rows[index] += found[number]
        if spans is not None:
            places[index] += [(start + first, start + last) for first, last in spans[number]]
    return rows, None if spans is None else places


def _cuts(text: str) -> list[tuple[int, int]]:
    """Pieces of at most `PIECE` characters, cut before white space where there is some near the end of one."""
    cuts, start = [], 0
    while len(text) - start > PIECE:
        blank = max(
            text.rfind(" ", start + PIECE // 2, start + PIECE), text.rfind("\n", start + PIECE // 2, start + PIECE)
        )
        end = blank if blank > 0 else start + PIECE
        cuts.append((start, end))
        start = end
    return [*cuts, (start, len(text))]


def _byte_ends(text: str, spans: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Byte positions from character positions. Tokens that share their characters share the bytes evenly."""
    if not spans:
        return np.zeros(0)
    start, end = np.asarray(spans, dtype=np.int64).reshape(-1, 2).T
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    bytes_at = np.concatenate([[0], np.cumsum(widths)])
    new = np.ones(len(start), dtype=bool)
    new[1:] = (start[1:] != start[:-1]) | (end[1:] != end[:-1])
    group = np.cumsum(new) - 1
    sizes = np.bincount(group)
    position = np.arange(len(start)) - np.flatnonzero(new)[group] + 1
    first, last = bytes_at[start], bytes_at[end]
    ends = np.maximum.accumulate(first + (last - first) * position / sizes[group])
    ends[-1] = bytes_at[-1]  # white space that a tokenizer drops at the end belongs to the text it predicted
    return ends


def _decoded_bytes(ids: list[int], tokenizer: Any) -> int:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(text.encode(errors="replace"))
