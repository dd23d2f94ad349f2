"""What repeated timings say: a median, how sure it is, and whether two of them differ.

Timings are not normal: a busy machine makes some of them much longer and none much shorter. So nothing here needs a
distribution: the interval of a median is made of two of the values themselves.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

SURE = 1.96  # standard deviations of a count of coin tosses, for 95 %
NO_DIFFERENCE = "no difference measured"


class Spread(NamedTuple):
    """A median and the interval that it is in, `low` <= `median` <= `high`."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The median with its 95 % interval, by order statistics; of fewer than six values the interval is all of them.

    >>> spread([3.0, 1.0, 2.0])
    Spread(low=1.0, median=2.0, high=3.0)
    """
    ordered, count = sorted(values), len(values)
    rank = max(0, math.floor((count - SURE * math.sqrt(count)) / 2))
    return Spread(ordered[rank], statistics.median(ordered), ordered[count - 1 - rank])


def per_second(amount: float, seconds: Spread) -> Spread:
    """Seconds for `amount` of something as a rate: the slowest becomes the lowest."""
    return Spread(amount / seconds.high, amount / seconds.median, amount / seconds.low)


def differ(one: Spread, other: Spread) -> bool:
    """Whether the intervals have nothing in common."""
    return one.low > other.high or one.high < other.low


def ratio(one: Spread, other: Spread) -> Spread:
    """One divided by the other, at its least, by the medians, and at its most.

    >>> ratio(Spread(2.0, 3.0, 4.0), Spread(1.0, 1.5, 2.0))
    Spread(low=1.0, median=2.0, high=4.0)
    """
    return Spread(one.low / other.high, one.median / other.median, one.high / other.low)


def busy(load: object, cores: object) -> str | None:
    """What to say on top of figures that were measured while the machine did other things; None where it didn't."""
    if not isinstance(load, int | float) or not isinstance(cores, int) or load <= cores:
        return None
    return (
        f"the machine was busy before the measuring (load {load:.1f} on {cores} cores): "
        "speeds are lower than they could be, and small differences don't show"
    )
