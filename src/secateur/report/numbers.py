"""Numbers as people read them. Every function takes None and says so with a dash: a report can be partial."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

MISSING = "–"


def is_number(value: Any) -> bool:
    """True for a finite int or float; False for None, NaN, infinities, booleans and text."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def text(value: Any) -> str:
    """Any value as one string; None and empty values as a dash."""
    return MISSING if value is None or value == "" else str(value)


def number(value: Any) -> str:
    """Four significant digits, thousands separated, no exponent between 0.0001 and a billion."""
    if not is_number(value):
        return text(value)
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-4:
        return f"{value:.3g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def numbers(values: Iterable[Any]) -> list[str]:
    """Figures that stand below or beside each other, with one precision: four significant digits of the largest, two
    of the smallest, without zeros that all of them end with.

    >>> numbers([13.746, 15.2, None])
    ['13.75', '15.20', '–']
    """
    values = list(values)
    sizes = [abs(value) for value in values if is_number(value) and value]
    if not sizes or max(sizes) >= 1e9 or min(sizes) < 1e-4:
        return [number(value) for value in values]
    places = max(4 - _digits(max(sizes)), 2 - _digits(min(sizes)), 0)
    while places and all(f"{size:.{places}f}".endswith("0") for size in sizes):
        places -= 1
    return [f"{value:,.{places}f}" if is_number(value) else text(value) for value in values]


def _digits(value: float) -> int:
    """Digits before the point; none or less for what is below 0.1."""
    return math.floor(math.log10(value)) + 1


def count(value: Any) -> str:
    """A whole number with every digit: 3147264 -> 3,147,264."""
    return f"{value:,.0f}" if is_number(value) else text(value)


def short(value: Any) -> str:
    """A whole number at a glance: 3147264 -> 3.15 M."""
    return _scaled(value, ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")), count)


def size(value: Any) -> str:
    """Bytes in decimal units, as disks and file managers count them: 6294528 -> 6.29 MB."""
    units = ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"))
    return _scaled(value, units, lambda rest: f"{count(rest)} bytes")


def percent(value: Any) -> str:
    """A fraction as a percentage with one decimal: 0.25 -> 25.0%."""
    return f"{100 * value:.1f}%" if is_number(value) else text(value)


def seconds(value: Any) -> str:
    """A duration: 0.41 s, 12.3 s, 4 min 05 s, 2 h 10 min."""
    if not is_number(value):
        return text(value)
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def threads(value: Any) -> str:
    """1 thread, 2 threads."""
    return f"{count(value)} thread" if value == 1 else f"{count(value)} threads"


def ratio(value: Any) -> str:
    """After divided by before: 1.88×."""
    if not is_number(value):
        return text(value)
    return f"{value:,.0f}×" if value >= 100 else f"{value:.3g}×" if value < 0.1 else f"{value:.2f}×"


def change(value: Any) -> str:
    """A ratio as a signed change: 0.89 -> −11.0%."""
    if not is_number(value):
        return text(value)
    amount = 100 * (value - 1)
    sign = "+" if amount >= 0.05 else "−" if amount <= -0.05 else "±"
    return f"{sign}{abs(amount):,.0f}%" if abs(amount) >= 100 else f"{sign}{abs(amount):.1f}%"


def _scaled(value: Any, units: tuple[tuple[float, str], ...], small: Any) -> str:
    if not is_number(value):
        return text(value)
    for scale, name in units:
        if abs(value) >= scale:
            return f"{value / scale:.3g}{name}"
    return str(small(value))
