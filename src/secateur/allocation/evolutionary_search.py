"""Spreads a budget over sites by trying: an evolution whose children move a little of it from some sites to others.

Every spread is weighed as a whole, so it is seen when two cuts cost more together than apart, which curves of single
sites can't say. As in EvoPress (https://arxiv.org/abs/2410.14649): each child of the best spread so far makes one to
three switches (one site loses more, another less, about as many parameters), children are first weighed roughly, and
only those that look best meet their parent on everything. Whole layers may go too: then a switch may let a layer that
goes change places with one that stays, which takes over what goes from the sites of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

LEVELS = 16  # into which a site is divided at most, the last of which would be all of it
CHILDREN = 8
FINALISTS = 2
SWITCHES = 3
DEPTH = "depth"  # the pool of genes that are whole layers

Spread = tuple[int, ...]


class Gene(NamedTuple):
    """A site: what goes from it is a number of levels.

    Args:
        pool: sites of one pool share a budget.
        levels: into which it is divided. size: parameters of one.
        most: levels that may go.
        layer: that it is a part of, or is as a whole. kind: of site.
    """

    pool: str
    levels: int
    size: float
    most: int
    layer: int = 0
    kind: str = ""


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
        gone = layers_gone(child, genes)
        here = [i for i, gene in enumerate(genes) if gene.pool == DEPTH or gene.layer not in gone]
        more = [i for i in here if child[i] < genes[i].most]
        if not more:
            break
        taken = more[draw(len(more))]
        less = [i for i in here if i != taken and child[i] > 0 and genes[i].pool == genes[taken].pool]
        if not less:
            continue
        given = less[draw(len(less))]
        if genes[taken].pool == DEPTH:
            _change_places(child, genes, taken, given)
            continue
        # Levels of sites of different sizes: as many as come nearest, at least one of each.
        ratio = genes[taken].size / genes[given].size
        up, down = (1, max(1, round(ratio))) if ratio >= 1 else (max(1, round(1 / ratio)), 1)
        if child[taken] + up <= genes[taken].most and child[given] >= down:
            child[taken] += up
            child[given] -= down
    return tuple(child)


def layers_gone(spread: Sequence[int], genes: Sequence[Gene]) -> frozenset[int]:
    """The layers that a spread takes whole."""
    return frozenset(gene.layer for gene, level in zip(genes, spread, strict=True) if gene.pool == DEPTH and level)


def _change_places(child: list[int], genes: tuple[Gene, ...], taken: int, given: int) -> None:
    """One layer goes in the place of another, which gets its sites' levels; nothing, where they aren't alike."""
    pair = genes[taken].layer, genes[given].layer
    own, other = ([i for i, g in enumerate(genes) if g.pool != DEPTH and g.layer == layer] for layer in pair)
    if [genes[i]._replace(layer=0) for i in own] != [genes[i]._replace(layer=0) for i in other]:
        return
    child[taken], child[given] = 1, 0
    for mine, its in zip(own, other, strict=True):
        child[mine], child[its] = child[its], child[mine]


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
