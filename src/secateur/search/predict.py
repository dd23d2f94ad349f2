"""What a candidate will cost: the sum of what its pieces cost alone, weighted by what was measured of candidates.

Pieces are measured at a few levels of each site; between those, and to where the whole sub-block is gone, the cost
follows a power law. KV groups with query heads are measured at one level: how much more or less than the sum of both
that costs holds for the others. Costs of pieces don't add up exactly: of some kinds they do less harm together than
alone, of others more, and the same holds for early and late layers, and for much of a site and little. Factors for
each of these, fitted to all candidates so far with their relative errors, take up most of it and keep the sum a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from secateur.model.site_kinds import KINDS
from secateur.search.space import BOTH, Candidate, Piece, Space, heads_of
from secateur.search.trial import Evaluate

MEASURED = (2, 5)  # levels of a site that has more than four
LEAST = 1e-7  # nats: below it a cost is rounding
# Pieces that have a term of their factor in common, and the trust that there is none: as so many candidates that are
# of such pieces alone, and cost what all others' factor says.
TERMS: tuple[tuple[Callable[[Space, Piece], Hashable], float], ...] = (
    (lambda space, piece: (piece.kind, 3 * piece.layer // space.layers), 0.02),
    (lambda space, piece: (piece.kind, piece.layer), 0.1),
    (lambda space, piece: (piece.kind, int(4 * space.shares[piece])), 0.05),
)
Costs = Mapping[Piece, float]
Weights = Mapping[Piece, float]  # a piece's factor


def measured_pieces(space: Space) -> list[Piece]:
    """The pieces that are measured alone; the cost of the others follows from theirs. Of `BOTH` it's the smallest."""
    found: list[Piece] = []
    for (_, kind), own in _curves(space).items():
        few = own[:1] if kind == BOTH else own if len(own) <= 4 else []
        last = () if _all_gone(space, own[0]) else (own[-1].level,)
        found += few or [piece for piece in own if piece.level in (*MEASURED, *last)]
    return found


def _all_gone(space: Space, piece: Piece) -> Piece | None:
    """The whole sub-block, where that is as much as all units of a piece's kind; None where nothing says so."""
    known = KINDS.get(piece.kind)
    if known is None or known.part is None or not known.refitted or known.normed:
        return None
    whole = Piece(piece.layer, known.part, 1)
    return whole if whole in space.saves else None


def costs_of(
    space: Space, evaluate: Evaluate, step: Callable[[str], None] = lambda text: None, at_once: int = 1
) -> dict[Piece, float]:
    """What each piece costs alone, in nats per token.

    Args:
        step: called after each piece that is measured.
        at_once: how many are handed to `evaluate` together.
    """
    found: dict[Piece, float] = {}
    alone = measured_pieces(space)
    for first in range(0, len(alone), at_once):
        some = alone[first : first + at_once]
        for piece, cost in zip(some, evaluate([(piece,) for piece in some]), strict=True):
            found[piece] = cost
            step(f"layer {piece.layer}, {piece.kind}")
    curves = _curves(space)
    for own in (own for (_, kind), own in curves.items() if kind != BOTH):
        points = [(space.shares[piece], found[piece]) for piece in own if piece in found]
        whole = _all_gone(space, own[0])
        points += [(1.0, found[whole])] if whole in found else []
        found |= {piece: between(points, space.shares[piece]) for piece in own if piece not in found}
    for own in (own for (_, kind), own in curves.items() if kind == BOTH):
        sums = {piece: sum(max(found[part], LEAST) for part in heads_of(piece)) for piece in own}
        ratio = max(found[own[0]], LEAST) / sums[own[0]]
        found |= {piece: ratio * sums[piece] for piece in own[1:]}
    return {piece: found[piece] for piece in space.saves}


def between(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at x of a curve through points that is a power law between two of them, and before the first.

    Straight lines would make measured levels look cheaper than those between them, which are as likely to be good.

    >>> between([(0.25, 1.0), (0.5, 4.0)], 0.375), between([(0.25, 1.0), (0.5, 4.0)], 0.125)
    (2.25, 0.25)

    Args:
        points: (x, y), x ascending; y that fall are held at the highest so far.
    """
    xs = [a for a, _ in points]
    ys = np.maximum.accumulate([max(b, LEAST) for _, b in points])
    if len(points) == 1:
        return float(ys[0] * x / xs[0])
    place = min(max(int(np.searchsorted(xs, x)) - 1, 0), len(xs) - 2)
    slope = np.log(ys[place + 1] / ys[place]) / np.log(xs[place + 1] / xs[place])
    slope = max(float(slope), 1.0) if x < xs[0] else float(slope)
    return float(round(ys[place] * (x / xs[place]) ** slope, 12))


def _curves(space: Space) -> dict[tuple[int, str], list[Piece]]:
    """(layer, kind) -> its pieces, by level."""
    found: dict[tuple[int, str], list[Piece]] = {}
    for piece in sorted(space.saves):
        found.setdefault((piece.layer, piece.kind), []).append(piece)
    return found


def weighted(costs: Costs, weights: Weights) -> dict[Piece, float]:
    """The costs of pieces, each times its factor."""
    return {piece: cost * weights[piece] for piece, cost in costs.items()}


def predicted(candidate: Candidate, costs: Costs) -> float:
    """The cost of a candidate, in nats per token."""
    return sum((costs[piece] for piece in candidate), 0.0)


def fitted(
    space: Space, costs: Costs, tried: Sequence[tuple[Candidate, float]], without: int | None = None
) -> dict[Piece, float]:
    """Factors with which the sums come nearest to what was measured, relative to it, and not far from the mean one.

        minimise  sum over candidates (m sum cost[p] (1 + terms of p) / measured - 1)^2 + sum over terms trust term^2

    m is the mean factor, the terms those of `TERMS`.

    Args:
        tried: candidates with what was measured of them.
        without: the place of one of them that tells of the mean factor alone: without it there, too, one that costs
            much would itself make the others look cheap.
    """
    known = [(candidate, cost) for candidate, cost in tried if candidate and cost > 0]
    place = {piece: n for n, piece in enumerate(costs)}
    if not known:
        return dict.fromkeys(place, 1.0)
    A = np.zeros((len(known), len(place)))
    for row, (candidate, cost) in enumerate(known):
        for piece in candidate:
            A[row, place[piece]] = costs[piece] / cost
    # What all candidates have in common first: a piece that none of them has gets it too.
    mean = float(np.exp(-np.mean(np.log(np.maximum(A.sum(1), 1e-9)))))
    A *= mean
    if without is not None:
        A = np.delete(A, without, axis=0)
    # Ridge regression in its dual form, which has one unknown for each candidate.
    together = [(_alike([key(space, piece) for piece in place]), trust) for key, trust in TERMS]
    kernel = np.sum([(A @ G) @ (A @ G).T / trust for G, trust in together], axis=0)
    dual = np.linalg.solve(kernel + np.eye(len(A)), 1 - A.sum(1))
    terms = np.sum([G @ (G.T @ (A.T @ dual)) / trust for G, trust in together], axis=0)
    return {piece: mean * max(1 + float(terms[n]), 0.05) for piece, n in place.items()}


def _alike(keys: Sequence[Hashable]) -> np.ndarray:
    """(keys, different keys), 1 where a key is that one."""
    place = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return np.eye(len(place))[[place[key] for key in keys]]


def from_others(space: Space, costs: Costs, tried: Sequence[tuple[Candidate, float]]) -> list[float]:
    """What is predicted of each candidate once the factors are fitted to all of the others, in nats per token; of one
    that costs nothing, what all say."""
    known = [(candidate, cost) for candidate, cost in tried if candidate and cost > 0]
    place = {candidate: n for n, (candidate, _) in enumerate(known)}
    return [
        predicted(candidate, weighted(costs, fitted(space, costs, known, place.get(candidate))))
        for candidate, _ in tried
    ]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's, of two lists without many ties; None where there are fewer than three."""
    if len(a) < 3:
        return None
    x, y = (np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / np.sqrt((x @ x) * (y @ y)))
