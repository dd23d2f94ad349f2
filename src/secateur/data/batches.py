"""Calibration sequences: the one protocol by which text becomes the token batches of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from secateur.data.cache import kept_bytes
from secateur.data.corpus import Corpus
from secateur.data.tokens import check_ids, joined_ids, key_of, tokenize, tokenize_counted
from secateur.errors import InputError

__all__ = ["Calibration", "calibration_batches", "tokenize"]


@dataclass(frozen=True)
class Calibration:
    """Token sequences to calibrate on, and some of the same source to check on.

    tokens         int64 (n, length), n <= the samples asked for
    held_out       int64 (m, length), none of them in `tokens`; m may be 0 where the source is short
    sha256         of `tokens`: length, then the ids as little-endian int64
    source         name of the corpus
    source_sha256  of what was read from it
    counts         bool (n, length), where `tokens` count if a loss is taken; None where all do
    general        how many of `tokens` are of general text beside the source's, see `pipeline.calibration`
    notes          what a report should say, for example that there were fewer sequences than asked for
    """

    tokens: Tensor
    held_out: Tensor
    sha256: str
    source: str
    source_sha256: str
    notes: tuple[str, ...] = ()
    counts: Tensor | None = None
    general: int = 0


def calibration_batches(
    corpus: Corpus,
    tokenizer: Any | None,
    samples: int = 128,
    length: int = 512,
    seed: int = 0,
    held_out: int = 32,
    vocab_size: int | None = None,
) -> Calibration:
    """Draw `samples` sequences of `length` tokens from a corpus, and up to `held_out` others.

    All documents, each with its BOS (conversations as their template writes them), are joined in order and cut into
    pieces of `length` tokens: nothing is padded, and what is left over is dropped. The pieces are permuted by a CPU
    generator with `seed`, so the draw is the same on every machine. The first `samples` are for calibration, the next
    `held_out` are the held-out ones.

    Args:
        vocab_size: ids at or above it are refused. Default: the tokenizer's size, where there is one.

    Raises:
        InputError: less text than one sequence, an id outside the vocabulary, or a number below 1.
    """
    for flag, value in (("samples", samples), ("length", length)):
        if value < 1:
            raise InputError(f"--{flag} {value} is too small; give 1 or more")
    limit = vocab_size if vocab_size is not None else len(tokenizer) if tokenizer is not None else None
    joined, flags = _joined(corpus, tokenizer, limit)
    pieces = joined[: len(joined) // length * length].view(-1, length)
    if not len(pieces):
        raise InputError(
            f"{corpus.name} has {len(joined)} tokens, less than one sequence of {length};"
            f" use --length {len(joined)} or less, or more text"
        )
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))
    tokens = pieces[order[:samples]].contiguous()
    others = pieces[order[samples : samples + held_out]].contiguous()
    counts = None
    if flags is not None:
        counts = flags[: pieces.numel()].view(-1, length)[order[:samples]].contiguous()
    about = (digest(tokens, counts), corpus.name, corpus.sha256, _notes(corpus, tokens, samples))
    return Calibration(tokens, others, *about, counts)


def _joined(corpus: Corpus, tokenizer: Any | None, limit: int | None) -> tuple[Tensor, Tensor | None]:
    """All documents in a row, int64 (tokens,), checked; for examples also which tokens count."""
    key = key_of(corpus, tokenizer)
    if key is not None:
        kept = kept_bytes("tokens", key, lambda: joined_ids(corpus, tokenizer).tobytes())
        joined = torch.frombuffer(bytearray(kept), dtype=torch.int32).long()
        if limit is None or not len(joined) or int(joined.max()) < limit:
            return joined, None
    counted = tokenize_counted(corpus, tokenizer)
    documents = [ids for ids, _ in counted]
    if limit is not None:
        check_ids(documents, limit, corpus.name)
    joined = torch.tensor(list(chain.from_iterable(documents)), dtype=torch.int64)
    if corpus.examples is None:
        return joined, None
    return joined, torch.tensor(list(chain.from_iterable(own or [] for _, own in counted)))


def _notes(corpus: Corpus, tokens: Tensor, samples: int) -> tuple[str, ...]:
    if len(tokens) == samples:
        return corpus.notes
    few = f"{corpus.name} gives {len(tokens)} sequences of {tokens.shape[1]} tokens; {samples} were asked for"
    return (*corpus.notes, few)


def check_enough(calibration: Calibration, samples: int) -> None:
    """Refuses text that gives less than a tenth of the sequences that were asked for.

    Raises:
        InputError: in one line.
    """
    found, length = calibration.tokens.shape
    if found * 10 < samples:
        raise InputError(
            f"{calibration.source} gives {found} sequence{'s' * (found > 1)} of {length} tokens, {samples} were "
            f"asked for; give more text, a shorter --length, --samples {found}, or --allow-little-text"
        )


def framed(calibration: Calibration, tokenizer: Any) -> Calibration:
    """The same with every sequence beginning and ending as the tokenizer begins and ends a text.

    For models that classify or embed, which look at these tokens ([CLS], [SEP]) more than at any other. They take the
    place of what was there, so a sequence that has them stays as it is.
    """
    plain, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    places = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
    if not plain or not places:
        return calibration
    before, after = whole[: places[0]], whole[places[0] + len(plain) :]
    if len(before) + len(after) >= calibration.tokens.shape[1]:
        return calibration
    parts = [part.clone() for part in (calibration.tokens, calibration.held_out)]
    for part in parts:
        part[:, : len(before)] = torch.tensor(before, dtype=part.dtype)
        part[:, part.shape[1] - len(after) :] = torch.tensor(after, dtype=part.dtype)
    tokens, held_out = parts
    sha256 = digest(tokens, calibration.counts)
    return replace(calibration, tokens=tokens, held_out=held_out, sha256=sha256)


def digest(tokens: Tensor, counts: Tensor | None = None) -> str:
    """SHA-256 of token ids (n, length): the length, then the ids as little-endian int64, then which of them count
    where not all do, a byte each."""
    total = hashlib.sha256(f"{tokens.shape[1]}:".encode())
    total.update(tokens.numpy().astype("<i8").tobytes())
    if counts is not None:
        total.update(counts.numpy().tobytes())
    return total.hexdigest()
