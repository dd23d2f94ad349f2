"""Calibration text from several sources, each with its share of the sequences.

general.jsonl:0.7,code.jsonl:0.3     a share for each; they are divided by their sum
general.jsonl,code.jsonl             equal shares
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from secateur.data.batches import Calibration, calibration_batches, digest
from secateur.data.documents import load_corpus
from secateur.errors import InputError


def shares_of(spec: str) -> list[tuple[str, float]]:
    """(source, share) of each source of a specification; shares add up to 1.

    >>> shares_of("a.jsonl:3,b.jsonl:1")
    [('a.jsonl', 0.75), ('b.jsonl', 0.25)]

    Raises:
        InputError: a share that isn't a positive number, shares for some sources only, or a source named twice.
    """
    if _exists(spec):
        return [(spec, 1.0)]
    parts = [part.strip() for part in spec.split(",") if part.strip()]
    split = [_share(part) for part in parts] or [(spec, None)]
    given = [share for _, share in split if share is not None]
    if given and len(given) < len(split):
        raise InputError(f"--calibrate {spec} gives a share to some sources only; give one to each, or to none")
    names = [name for name, _ in split]
    if len(set(names)) < len(names):
        raise InputError(f"--calibrate {spec} names a source twice; give it one share")
    total = sum(given) or float(len(split))
    return [(name, (1.0 if share is None else share) / total) for name, share in split]


def _share(part: str) -> tuple[str, float | None]:
    """A source, and the number behind its last colon if that is one: `stdlib:code` and hub ids have others."""
    name, colon, end = part.rpartition(":")
    if not colon or _exists(part):
        return part, None
    try:
        share = float(end)
    except ValueError:
        return part, None
    if not (share > 0 and math.isfinite(share)):
        raise InputError(f"--calibrate: the share of {name} is {end}; give a number above 0")
    return name, share


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError):
        return False


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
    spec: str, tokenizer: Callable[[], Any], samples: int, length: int, seed: int, vocab_size: int
) -> Calibration:
    """Sequences of one source or of several, by the protocol of `calibration_batches` for each.

    `tokenizer` is asked for only where a source is text. Those of several sources are mixed by the
    seed. The held-out ones are of all sources, by their shares too.

    Raises:
        InputError: see `shares_of` and `calibration_batches`; fewer samples than sources.
    """
    shares = shares_of(spec)
    if len(shares) > samples:
        raise InputError(f"--samples {samples} is less than one for each of {len(shares)} sources; give more")
    held_out = counts_of([share for _, share in shares], max(32, len(shares)))
    parts = []
    for (name, _), count, held in zip(shares, counts_of([s for _, s in shares], samples), held_out, strict=True):
        corpus = load_corpus(name)
        own = tokenizer() if corpus.ids is None else None
        parts.append(calibration_batches(corpus, own, count, length, seed, held, vocab_size=vocab_size))
    if len(parts) == 1:
        return parts[0]
    tokens = torch.cat([part.tokens for part in parts])
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    tokens = tokens[order].contiguous()
    sources = hashlib.sha256("".join(part.source_sha256 for part in parts).encode()).hexdigest()
    notes = tuple(note for part in parts for note in part.notes)
    others = torch.cat([part.held_out for part in parts])
    return Calibration(tokens, others, digest(tokens), spec, sources, notes)
