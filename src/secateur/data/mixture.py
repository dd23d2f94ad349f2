"""Calibration text from several sources, each with its share of the sequences.

general.jsonl:0.7,code.jsonl:0.3     a share for each; they are divided by their sum
general.jsonl,code.jsonl             equal shares
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from secateur.data.batches import Calibration, calibration_batches, digest
from secateur.data.documents import load_corpus
from secateur.data.sources import shares_of
from secateur.errors import InputError


def counts_of(shares: list[float], samples: int) -> list[int]:
    """Whole sequences of each source: the nearest to its share, `samples` in all, at least one each.

    >>> counts_of([0.5, 0.3, 0.2], 8)
    [4, 2, 2]
    """
    counts = [max(1, math.floor(share * samples)) for share in shares]
    rest = [share * samples - count for share, count in zip(shares, counts, strict=True)]
    while sum(counts) < samples:
        most = max(range(len(rest)), key=lambda i: (rest[i], -i))
        counts[most] += 1
        rest[most] -= 1
    while sum(counts) > samples:  # sources with less than one sequence were given one
        counts[counts.index(max(counts))] -= 1
    return counts


def calibration_of(
    spec: str,
    tokenizer: Callable[[], Any],
    samples: int,
    length: int,
    seed: int,
    vocab_size: int,
    flag: str = "--calibrate",
) -> Calibration:
    """Draws token sequences of one source or of several, by the protocol of `calibration_batches` for each.

    Sequences of several sources are mixed by the seed. The held-out ones are of all sources, by their shares too.

    Args:
        spec: one source, or several with commas, each with its share or none: `a.jsonl:0.7,b.jsonl:0.3`.
        tokenizer: gives the tokenizer; asked for only where a source is text.
        samples: sequences of all sources together.
        length: tokens of each.
        seed: of the draw and of the mixing.
        vocab_size: token ids at or above it are refused.
        flag: by which the specification was given.

    Raises:
        InputError: see `shares_of` and `calibration_batches`; fewer samples than sources.
    """
    shares = shares_of(spec, flag)
    if len(shares) > samples:
        raise InputError(f"--samples {samples} is less than one for each of {len(shares)} sources; give more")
    held_out = counts_of([share for _, share in shares], max(32, len(shares)))
    parts = []
    for (name, _), count, held in zip(shares, counts_of([s for _, s in shares], samples), held_out, strict=True):
        corpus = load_corpus(name)
        own = tokenizer() if corpus.ids is None else None
        parts.append(calibration_batches(corpus, own, count, length, seed, held, vocab_size=vocab_size))
    return parts[0] if len(parts) == 1 else mixed(parts, spec, seed)


def mixed(parts: Sequence[Calibration], name: str, seed: int) -> Calibration:
    """Sequences of several draws in an order that the seed gives, and the held-out ones of all."""
    tokens = torch.cat([part.tokens for part in parts])
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    tokens = tokens[order].contiguous()
    sources = hashlib.sha256("".join(part.source_sha256 for part in parts).encode()).hexdigest()
    notes = tuple(note for part in parts for note in part.notes)
    others = torch.cat([part.held_out for part in parts])
    counts = None
    if any(part.counts is not None for part in parts):
        flags = [torch.ones_like(p.tokens, dtype=torch.bool) if p.counts is None else p.counts for p in parts]
        counts = torch.cat(flags)[order].contiguous()
    return Calibration(tokens, others, digest(tokens, counts), name, sources, notes, counts)
