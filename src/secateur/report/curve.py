"""A picture of one or two lines over the steps of something."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.report import numbers as fmt

WIDTH, HEIGHT, LEFT, BOTTOM = 640.0, 170.0, 46.0, 24.0
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """Two polylines, the first of which may be empty, and the axes' ends: (x, y, text)."""

    width: float
    height: float
    training: str
    held_out: str
    ticks: list[tuple[float, float, str]]


def draw(first: Sequence[Point], second: Sequence[Point], unit: str, logarithmic: bool = False) -> Curve:
    """The picture of lines of (step from 0, value); both share the axes.

    Args:
        unit: what a step is called.
        logarithmic: equal ratios of values are equally high; all values must be positive then.
    """
    scale = math.log if logarithmic else float
    values, last = [value for _, value in (*first, *second)], max(step for step, _ in (*first, *second))
    low, high = min(values), max(values)
    span = (scale(high) - scale(low)) or 1.0

    def polyline(line: Sequence[Point]) -> str:
        x = [LEFT + (WIDTH - LEFT - 8) * step / (last or 1) for step, _ in line]
        y = [8 + (HEIGHT - BOTTOM - 8) * (scale(high) - scale(value)) / span for _, value in line]
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))

    ticks = [
        (LEFT - 6, 14.0, fmt.number(round(high, 3))),
        (LEFT - 6, HEIGHT - BOTTOM, fmt.number(round(low, 3))),
        (WIDTH - 8, HEIGHT - 6, f"{unit} {fmt.count(last)}"),
    ]
    return Curve(WIDTH, HEIGHT, polyline(first), polyline(second), ticks)
