"""What a candidate will cost: the sum of what its pieces cost alone, weighted by what was measured of candidates.

Pieces are measured at a few levels of each site; between those, and to where the whole sub-block is gone, the cost
follows a power law. KV groups with query
heads are measured at one level: how much more or less than the sum of both that costs holds for the others. Costs of
pieces don't add up exactly: of some kinds they do less harm together than alone, of others more, and the same holds
for early and late layers. A factor for each kind and third of the model's depth, and how far each layer's is from it,
are fitted to all candidates so far with their relative errors. That takes up most of it and keeps the sum a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from secateur.model.site_kinds import KINDS
from secateur.search.space import BOTH, Candidate, Piece, Space, heads_of
from secateur.search.trial import Evaluate

MEASURED = (2, 5)  # levels of a site that has more than four
LEAST = 1e-7  # nats: below it a cost is rounding
# In the mean factor for each group, and in the group's for each layer: as so many candidates that are of it alone.
TRUST, TRUST_LAYER = 0.03, 0.1
Costs = Mapping[Piece, float]
Weights = Mapping[tuple[int, str], float]  # (layer, kind) -> its factor


def measured_pieces(space: Space) -> list[Piece]:
    """The pieces that are measured alone; the cost of the others follows from theirs. Of `BOTH` it's the smallest."""
    found: list[Piece] = []
    for (_, kind), own in _curves(space).items():
        few = own[:1] if kind == BOTH else own if len(own) <= 4 else []
        last = () if _all_gone(space, own[0]) else (own[-1].level,)
        found += few or [piece for piece in own if piece.level in (*MEASURED, *last)]
    return found


def _all_gone(space: Space, piece: Piece) -> Piece | None:
    """The piece that a layer is left with when all units of a piece's kind go; None where nothing says it."""
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


def group_of(space: Space, layer: int, kind: str) -> tuple[str, int]:
    """Pieces whose factors are near each other: of one kind, in one third of the model's depth."""
    return kind, 3 * layer // space.layers


def weighted(costs: Costs, weights: Weights) -> dict[Piece, float]:
    """The costs of pieces, each times the factor of its layer and kind."""
    return {piece: cost * weights.get((piece.layer, piece.kind), 1.0) for piece, cost in costs.items()}


def predicted(candidate: Candidate, costs: Costs) -> float:
    """The cost of a candidate, in nats per token."""
    return sum(costs[piece] for piece in candidate)


def fitted(space: Space, costs: Costs, tried: Sequence[tuple[Candidate, float]]) -> dict[tuple[int, str], float]:
    """Factors with which the sums come nearest to what was measured, relative to it, and not far from the mean one.

        minimise  sum over candidates (m sum cost[p] (1 + g + l) / measured - 1)^2 + TRUST |g|^2 + TRUST_LAYER |l|^2

    m is the mean factor, g that of a kind in a third of the depth, l that of a kind in a layer.

    Args:
        tried: candidates with what was measured of them.
    """
    known = [(candidate, cost) for candidate, cost in tried if candidate and cost > 0]
    sites = sorted({(piece.layer, piece.kind) for piece in costs})
    if not known:
        return dict.fromkeys(sites, 1.0)
    place = {site: n for n, site in enumerate(sites)}
    A = np.zeros((len(known), len(sites)))
    for row, (candidate, cost) in enumerate(known):
        for piece in candidate:
            A[row, place[piece.layer, piece.kind]] += costs[piece] / cost
    # What all candidates have in common first: a site that none of them touches gets it too.
    mean = float(np.exp(-np.mean(np.log(np.maximum(A.sum(1), 1e-9)))))
    A *= mean
    groups = [group_of(space, *site) for site in sites]
    of_group = np.array([[float(group == own) for group in sorted({*groups})] for own in groups])
    # Ridge regression in its dual form, which has one unknown for each candidate.
    spread = of_group @ of_group.T / TRUST + np.eye(len(sites)) / TRUST_LAYER
    dual = np.linalg.solve(A @ spread @ A.T + np.eye(len(known)), 1 - A.sum(1))
    beside = spread @ (A.T @ dual)
    return {site: mean * max(1 + float(beside[n]), 0.05) for site, n in place.items()}


def from_others(space: Space, costs: Costs, tried: Sequence[tuple[Candidate, float]]) -> list[float]:
    """What is predicted of each candidate once the factors are fitted to all of the others, in nats per token."""
    found = []
    for place, (candidate, _) in enumerate(tried):
        weights = fitted(space, costs, [*tried[:place], *tried[place + 1 :]])
        found.append(predicted(candidate, weighted(costs, weights)))
    return found


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's, of two lists without many ties; None where there are fewer than three."""
    if len(a) < 3:
        return None
    x, y = (np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / np.sqrt((x @ x) * (y @ y)))
