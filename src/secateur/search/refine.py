"""Rounds of solving and measuring: what the programme finds is measured, and what was measured corrects its costs.

The first round solves with all kinds of pieces together and with each family of them alone, so that the result is
never worse than the best of those. Each round after it fits the predictor, and measures: what the programme finds
then; what it finds at perturbed costs; and the best candidates so far with a third of their layers chosen anew, at
perturbed costs too (large neighbourhood search).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from secateur.model.site_kinds import SUB_BLOCKS
from secateur.search.predict import Costs, fitted, predicted, weighted
from secateur.search.programme import Limit, solve
from secateur.search.space import BOTH, KV, LAYER, QUERY, Candidate, Piece, Space
from secateur.search.trial import Evaluate

PERTURBED, AROUND = 3, 4  # candidates of a round beside the programme's own
NOISE = 0.35  # standard deviation of a cost's logarithm
BEST = 2  # candidates that others are looked for around
IDLE = 4  # rounds without a new candidate that end the search


class Tried(NamedTuple):
    """A candidate that was measured.

    Args:
        predicted: what is thought of it, before it is measured or by all others.
        measured: KL to the untouched model's predictions, nats per token.
    """

    candidate: Candidate
    predicted: float
    measured: float


def refined(
    space: Space,
    costs: Costs,
    limits: Sequence[Limit],
    evaluate: Evaluate,
    trials: int,
    seed: int,
    over: Callable[[], bool] = lambda: False,
    known: Sequence[Tried] = (),
    at_once: int = 1,
) -> Iterator[Tried]:
    """Candidates within the limits as they are measured, `trials` of them at most; nothing where there is none.

    Args:
        evaluate: measures a list of candidates.
        over: whether time is up; asked after the first candidate.
        at_once: how many are handed to `evaluate` together; time is looked at between.
        known: measured before, elsewhere: they tell the predictor, and aren't measured again.
    """
    tried: list[Tried] = []
    seen = {one.candidate for one in known}
    idle, number = 0, 0
    while len(tried) < trials and idle < IDLE and not (tried and over()):
        every = [*known, *tried]
        now = weighted(costs, fitted(space, costs, [(one.candidate, one.measured) for one in every]))
        best = [one.candidate for one in sorted(tried, key=lambda one: one.measured)[:BEST]]
        draw = np.random.default_rng([seed, number])
        found = _begin(space, now, limits) if number == 0 else _round(space, now, limits, best, draw)
        fresh = [candidate for candidate in dict.fromkeys(found) if candidate not in seen][: trials - len(tried)]
        seen |= {*fresh}
        idle, number = 0 if fresh else idle + 1, number + 1
        if number == 1 and not fresh:
            return
        for first in range(0, len(fresh), at_once):
            some = fresh[first : first + at_once]
            for one, measured in zip(some, evaluate(some), strict=True):
                tried.append(Tried(one, predicted(one, now), measured))
                yield tried[-1]
            if over():
                break


def _begin(space: Space, costs: Costs, limits: Sequence[Limit]) -> list[Candidate]:
    """The programme's answers for all kinds, without what goes whole, and for each kind alone."""
    inside = [kind for kind in space.kinds if kind not in (*SUB_BLOCKS, LAYER)]
    alone = [(KV, QUERY, BOTH) if kind == BOTH else (kind,) for kind in space.kinds]
    sets = [space.kinds, inside, [kind for kind in space.kinds if kind != LAYER], *alone]
    found = (solve(space, costs, limits, kinds) for kinds in sets if kinds)
    return [candidate for candidate in found if candidate is not None]


def _round(
    space: Space, costs: Costs, limits: Sequence[Limit], best: Sequence[Candidate], draw: np.random.Generator
) -> list[Candidate]:
    found = [solve(space, costs, limits)]
    found += [solve(space, _perturbed(costs, draw), limits) for _ in range(PERTURBED)]
    for number in range(AROUND if best else 0):
        size = max(2, -(-space.layers // 3))
        free = {int(n) for n in draw.choice(space.layers, min(size, space.layers), replace=False)}
        found.append(solve(space, _perturbed(costs, draw), limits, around=(best[number % len(best)], free)))
    return [candidate for candidate in found if candidate is not None]


def _perturbed(costs: Costs, draw: np.random.Generator) -> dict[Piece, float]:
    """The costs of a layer's kind all times one random factor."""
    factors: dict[tuple[int, str], float] = {}
    for piece in costs:
        if (piece.layer, piece.kind) not in factors:
            factors[piece.layer, piece.kind] = float(np.exp(NOISE * draw.standard_normal()))
    return {piece: cost * factors[piece.layer, piece.kind] for piece, cost in costs.items()}
