"""Uniform allocation: every site of a kind loses the same fraction of its units."""

from __future__ import annotations

import math


def keep_count(units: int, sparsity: float, groups: int = 1, round_to: int = 1) -> int:
    """Gives the number of `units` that stay when the fraction `sparsity` of them goes.

    That is the nearest count to (1 - sparsity) * units, halves up, that is a multiple of both `groups` and
    `round_to`. At least one such multiple stays, and all units where there is no smaller one.

    >>> keep_count(172, 0.25)
    129
    >>> keep_count(6, 0.2, groups=2)
    4

    Args:
        units: how many there are, such as `Site.units`.
        sparsity: fraction that goes, between 0 and 1.
        groups: runs of units that must keep equally many each, such as `Site.groups`.
        round_to: what the count must be a multiple of.
    """
    step = math.lcm(groups, round_to)
    if step >= units:
        return units
    wanted = math.floor((1 - sparsity) * units / step + 0.5) * step
    return min(max(wanted, step), units // step * step)
