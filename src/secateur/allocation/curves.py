"""Spreads a budget over sites by what each cut costs: the cheapest parameters go first.

Every site has a curve: what is lost when a fraction of it goes. Its lower convex hull is cut into the steps that the
site allows, and the steps of all sites are taken in the order of their price per parameter until enough is gone. On
convex curves that is the optimum, up to the last step; a dent in a curve is bridged, as nobody would stop in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

GRID = 100
MOST = 0.9  # of one site: what is measured or ranked there says little of the rest of the model


class Curve(NamedTuple):
    """What a site loses.

    Args:
        units: of the site. step: units that go together.
        parameters: of one unit.
        points: (fraction that goes, cost), ascending fractions; (0, 0) is understood.
        least: units that stay whatever they cost.
    """

    units: int
    step: int
    parameters: float
    points: tuple[tuple[float, float], ...]
    least: int = 1


def spread(curves: Mapping[str, Curve], target: float, most: float = MOST) -> dict[str, float]:
    """Site -> the fraction that goes, so that about `target` parameters go in all, at the least cost.

    The sum is the nearest to the target that whole steps allow, but no site loses more than `most` of its units or
    its last step. Of equal prices the earlier site in the mapping pays first.

    >>> dear, cheap = Curve(4, 1, 10, ((1.0, 8.0),)), Curve(4, 1, 10, ((0.5, 0.1), (1.0, 9.0)))
    >>> spread({"dear": dear, "cheap": cheap}, target=30)
    {'dear': 0.25, 'cheap': 0.5}
    """
    steps: list[tuple[float, int, str, float]] = []
    for number, (name, curve) in enumerate(curves.items()):
        limit = min(int(most * curve.units), curve.units - max(curve.step, curve.least))
        line = hull(curve.points)
        size = curve.step * curve.parameters
        before = 0.0
        for taken in range(1, limit // curve.step + 1):
            cost = height(line, taken * curve.step / curve.units)
            steps.append(((cost - before) / size, number, name, size))
            before = cost
    gone, taken_of = 0.0, dict.fromkeys(curves, 0)
    full: set[str] = set()
    for _, _, name, size in sorted(steps):
        if name in full or gone + size / 2 > target:
            full.add(name)  # a smaller step of another site may still fit
            continue
        gone += size
        taken_of[name] += 1
    return {name: taken_of[name] * curve.step / curve.units for name, curve in curves.items()}


def smooth(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """A curve through few measured points, at `GRID` places: a parabola of log cost over log fraction.

    Between straight lines the cheapest place to stop is nearly always a measured point, the same for every site.
    Fewer than three points, or a cost of zero, are left as they are.
    """
    measured = [(x, y) for x, y in points if x > 0]
    if len(measured) < 3 or any(y <= 0 for _, y in measured):
        return tuple(measured)
    x, y = np.log(np.array(measured)).T
    fit = np.polyfit(x, y, 2)
    grid = np.arange(1, GRID + 1) / GRID
    return tuple(zip(grid.tolist(), np.exp(np.polyval(fit, np.log(grid))).tolist(), strict=True))


def hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Lower convex hull of a curve from (0, 0); costs that fall are held at the highest so far."""
    line: list[tuple[float, float]] = [(0.0, 0.0)]
    highest = 0.0
    for x, y in sorted(points):
        highest = max(highest, y)
        if x <= line[-1][0]:
            continue
        while len(line) > 1 and _slope(line[-2], (x, highest)) <= _slope(line[-2], line[-1]):
            line.pop()
        line.append((x, highest))
    return line


def height(line: Sequence[tuple[float, float]], x: float) -> float:
    """The value of a polyline at x; beyond its end it goes on as its last piece does."""
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        if x <= x1 or (x1, y1) == line[-1]:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return 0.0


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
