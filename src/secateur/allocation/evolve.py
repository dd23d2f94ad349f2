"""Spreads a budget over sites by trying: an evolution whose children move a little of it from some sites to others.

Every spread is weighed as a whole, so it is seen when two cuts cost more together than apart, which curves of single
sites can't say. As in EvoPress (https://arxiv.org/abs/2410.14649): each child of the best spread so far makes one to
three switches (one site loses more, another less, about as many parameters), children are first weighed roughly, and
only those that look best meet their parent on everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

LEVELS = 16  # into which a site is divided at most, the last of which would be all of it
CHILDREN = 8
FINALISTS = 2
SWITCHES = 3

Spread = tuple[int, ...]


class Gene(NamedTuple):
    """A site: what goes from it is a number of levels.

    Args:
        pool: sites of one pool share a budget.
        levels: into which it is divided. size: parameters of one.
        most: levels that may go.
    """

    pool: str
    levels: int
    size: float
    most: int


class Weighing(NamedTuple):
    """One generation.

    Args:
        best: the best spread so far. cost: of it.
        weighed: how many times a spread was weighed, all generations together; rough weighings count by their share.
    """

    best: Spread
    cost: float
    weighed: float


def evolve(
    genes: tuple[Gene, ...],
    parent: Spread,
    weigh: Callable[[Spread, bool], float],
    rough: float,
    seed: int,
    begun: Weighing | None = None,
) -> Iterator[Weighing]:
    """Generation by generation, for as long as it is asked; a spread never costs more than the one before it.

    Args:
        parent: where it begins.
        weigh: cost of a spread, roughly (True) or on everything.
        rough: what a rough weighing takes of one on everything.
        seed: everything random follows from it, the parent and the number of weighings, so that a search that was
            interrupted goes on as it would have.
        begun: what an interrupted search has reached.
    """
    now = begun or Weighing(parent, weigh(parent, False), 1.0)
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + round(1000 * now.weighed))
        children = list(dict.fromkeys(child_of(now.best, genes, generator) for _ in range(CHILDREN)))
        children = [child for child in children if child != now.best]
        best = sorted(children, key=lambda child: weigh(child, True))[:FINALISTS]
        found = [(weigh(child, False), child) for child in best]
        weighed = now.weighed + max(rough, len(children) * rough + len(best))
        cost, spread = min([(now.cost, now.best), *found])
        now = Weighing(spread, cost, weighed)
        yield now


def child_of(parent: Spread, genes: tuple[Gene, ...], generator: torch.Generator) -> Spread:
    """The parent with one to `SWITCHES` switches, few more often than many."""

    def draw(count: int) -> int:
        return int(torch.randint(count, (1,), generator=generator))

    child = list(parent)
    for _ in range(1 + min(draw(SWITCHES), draw(SWITCHES))):
        more = [i for i, gene in enumerate(genes) if child[i] < gene.most]
        if not more:
            break
        taken = more[draw(len(more))]
        less = [i for i, g in enumerate(genes) if i != taken and child[i] > 0 and g.pool == genes[taken].pool]
        if not less:
            continue
        given = less[draw(len(less))]
        # Levels of sites of different sizes: as many as come nearest, at least one of each.
        ratio = genes[taken].size / genes[given].size
        up, down = (1, max(1, round(ratio))) if ratio >= 1 else (max(1, round(1 / ratio)), 1)
        if child[taken] + up <= genes[taken].most and child[given] >= down:
            child[taken] += up
            child[given] -= down
    return tuple(child)


def nearest(genes: tuple[Gene, ...], shares: tuple[float, ...]) -> Spread:
    """The spread whose levels come nearest to these fractions of each site, and to their sum in each pool."""
    exact = [min(share * gene.levels, gene.most) for gene, share in zip(genes, shares, strict=True)]
    spread = [int(value) for value in exact]
    for pool in dict.fromkeys(gene.pool for gene in genes):
        own = [i for i, gene in enumerate(genes) if gene.pool == pool]
        lacking = sum((exact[i] - spread[i]) * genes[i].size for i in own)
        # The largest fractions are rounded up first.
        for i in sorted(own, key=lambda i: spread[i] - exact[i]):
            if lacking >= genes[i].size / 2 and spread[i] < genes[i].most:
                spread[i] += 1
                lacking -= genes[i].size
    return tuple(spread)
