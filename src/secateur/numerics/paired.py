"""Two models on the same items: how far apart they are, how sure that is, and whether chance could have done it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SURE = 1.96  # standard errors on each side of a mean, for 95 %


@dataclass(frozen=True)
class Paired:
    """One model minus another, item by item.

    difference  mean over the items
    stderr      of that mean, from the items' own differences; None of a single item
    better      items on which the first model has more, and `worse` those on which it has less
    p           of the sign test; of rights and wrongs it is McNemar's exact test
    """

    difference: float
    stderr: float | None
    better: int
    worse: int
    p: float


def paired(own: Sequence[float], reference: Sequence[float]) -> Paired:
    """Compares figures of the same items in the same order; at least one."""
    differences = [a - b for a, b in zip(own, reference, strict=True)]
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return Paired(mean(differences), standard_error(differences), better, worse, sign_test(better, worse))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean: the sample's standard deviation (n - 1) over √n; None of a single value."""
    if len(values) < 2:
        return None
    centre = mean(values)
    squares = math.fsum((value - centre) ** 2 for value in values)
    return math.sqrt(squares / (len(values) - 1) / len(values))


def sign_test(better: int, worse: int) -> float:
    """Two-sided exact p that so uneven a split, or one that is more so, comes of fair coins.

    >>> sign_test(0, 5)
    0.0625
    """
    tosses, fewer = better + worse, min(better, worse)
    if better == worse:
        return 1.0
    logs = (
        math.lgamma(tosses + 1) - math.lgamma(k + 1) - math.lgamma(tosses - k + 1) - tosses * math.log(2)
        for k in range(fewer + 1)
    )
    return min(1.0, round(2 * math.fsum(map(math.exp, logs)), 12))
