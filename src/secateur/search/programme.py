"""The cheapest candidate within some limits, as an integer programme: a binary variable for each piece.

    minimise    sum cost[p] x[p]
    such that   sum saves[p] x[p] >= need                for each limit
                sum of x over a slot + x[layer] <= 1     for each sub-block of each layer
                sum of x over whole layers <= layers - 1

HiGHS (https://highs.dev, by scipy) solves it exactly, in well under a second for some hundreds of pieces.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from secateur.errors import ResourceError, install
from secateur.search.space import LAYER, Candidate, Piece, Space, slots

NODES = 20_000  # of the search tree, at most: not a time, so that the answer is the same on every machine
GAP = 1e-4


class Limit(NamedTuple):
    """At least `need` must be saved.

    Args:
        saves: by each piece.
        said: the wish that it stands for.
    """

    saves: Mapping[Piece, float]
    need: float
    said: str


def scipy_optimize() -> Any:
    """scipy's solvers.

    Raises:
        ResourceError: scipy isn't installed; names the command.
    """
    try:
        from scipy import optimize
    except ImportError:
        raise ResourceError(f"search needs scipy; install it: {install('search')}") from None
    return optimize


def solve(
    space: Space,
    costs: Mapping[Piece, float],
    limits: Sequence[Limit],
    kinds: Collection[str] | None = None,
    around: tuple[Candidate, Collection[int]] | None = None,
) -> Candidate | None:
    """The candidate of least cost that keeps all limits; None where none does.

    Args:
        costs: of each piece, not below 0.
        kinds: those whose pieces may go; None = all.
        around: (a candidate, layers): everything but those layers stays as in that candidate.
    """
    optimize = scipy_optimize()
    pieces = list(space.saves)
    low, high = np.zeros(len(pieces)), np.ones(len(pieces))
    for n, piece in enumerate(pieces):
        if kinds is not None and piece.kind not in kinds:
            high[n] = 0
        if around is not None and piece.layer not in around[1]:
            low[n] = high[n] = float(piece in around[0])
    rows, least, most = _constraints(space, pieces, limits)
    c = np.array([costs[piece] for piece in pieces])
    with _silent():
        found = optimize.milp(
            c / max(float(c.max(initial=0)), 1e-12),
            constraints=optimize.LinearConstraint(rows, least, most),
            bounds=optimize.Bounds(low, high),
            integrality=np.ones(len(pieces)),
            options={"node_limit": NODES, "mip_rel_gap": GAP},
        )
    if found.x is None:
        return None
    return tuple(sorted(piece for piece, x in zip(pieces, found.x, strict=True) if x > 0.5))


@contextmanager
def _silent() -> Iterator[None]:
    """HiGHS now and then prints a line of its own to the process's output, where --json would be."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no output
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _constraints(
    space: Space, pieces: list[Piece], limits: Sequence[Limit]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, least, most) of what must hold of the variables."""
    place = {piece: n for n, piece in enumerate(pieces)}
    rows, least, most = [], [], []
    every = slots(pieces)
    for (layer, part), own in every.items():
        whole = [] if part == LAYER else every.get((layer, LAYER), [])
        row = np.zeros(len(pieces))
        row[[place[piece] for piece in (*own, *whole)]] = 1
        rows.append(row)
        least.append(-np.inf)
        most.append(1.0)
    deep = np.array([float(piece.kind == LAYER) for piece in pieces])
    rows.append(deep)
    least.append(-np.inf)
    most.append(space.layers - 1.0)
    for limit in limits:
        row = np.array([limit.saves[piece] for piece in pieces])
        scale = max(float(np.abs(row).max(initial=0)), 1e-12)
        rows.append(row / scale)
        least.append(limit.need / scale)
        most.append(np.inf)
    return np.array(rows), np.array(least), np.array(most)
