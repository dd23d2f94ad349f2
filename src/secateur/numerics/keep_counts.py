"""Uniform allocation: every site of a kind loses the same fraction of its units."""

from __future__ import annotations

import math


def keep_count(units: int, sparsity: float, groups: int = 1, round_to: int = 1) -> int:
    """How many of `units` stay.

    The nearest count to (1 - sparsity) * units that is a multiple of `groups` (equally many in each group)
    and of `round_to`, halves up; at least one of those multiples stays, and never more than there are.

    >>> keep_count(172, 0.25)
    129
    >>> keep_count(6, 0.2, groups=2)
    4
    """
    step = math.lcm(groups, round_to)
    if step >= units:
        return units
    wanted = math.floor((1 - sparsity) * units / step + 0.5) * step
    return min(max(wanted, step), units // step * step)
