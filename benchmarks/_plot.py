"""Line and bar charts as SVG files, that a page of results shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

COLOURS = ("#b2182b", "#2166ac", "#1b7837", "#e08214", "#762a83", "#4d4d4d", "#01665e", "#8c510a")
WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 150, 34, 46
Point = tuple[float, float]


def line_chart(
    file: Path,
    title: str,
    series: Mapping[str, Sequence[Point]],
    across: str,
    up: str,
    log: tuple[bool, bool] = (False, True),
    dashed: Sequence[str] = (),
    colours: Mapping[str, int] | None = None,
) -> None:
    """Writes one chart.

    Args:
        series: name -> (x, y) points, drawn as a line with dots in the order of x.
        across, up: what the axes show.
        log: whether x and y are on logarithmic scales.
        dashed: series that are drawn dashed (a reference).
        colours: name -> which colour; each has its own unless given.
    """
    points = [p for values in series.values() for p in values]
    x = _Axis([p[0] for p in points], log[0], LEFT, WIDTH - RIGHT)
    y = _Axis([p[1] for p in points], log[1], HEIGHT - BOTTOM, TOP)
    parts = [*_frame(title, across, up), *_ruled(y)]
    for value in x.ticks():
        at = x.place(value)
        parts.append(f'<path d="M{at:.1f} {HEIGHT - BOTTOM}v4" stroke="#888"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
    for i, (name, values) in enumerate(series.items()):
        colour = COLOURS[(colours or {}).get(name, i) % len(COLOURS)]
        dash = ' stroke-dasharray="5 4"' if name in dashed else ""
        spots = [(x.place(a), y.place(b)) for a, b in sorted(values)]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>')
        if name not in dashed:
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.8" fill="{colour}"/>' for a, b in spots]
        row = TOP + 8 + 17 * i
        parts.append(f'<path d="M{WIDTH - RIGHT + 12} {row}h18" stroke="{colour}" stroke-width="1.8"{dash}/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 36}" y="{row + 4}">{escape(name)}</text>')
    file.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def bar_chart(
    file: Path, title: str, groups: Sequence[str], series: Mapping[str, Sequence[float]], up: str, base: float = 0.0
) -> None:
    """Writes one chart of bars, a group beside the next.

    Args:
        groups: what stands below each group.
        series: name -> a value for each group, drawn in one colour.
        up: what the height of a bar shows.
        base: where bars begin.
    """
    assert len(series) <= len(COLOURS), "two series would have one colour"
    y = _Axis([base, *(value for values in series.values() for value in values)], False, HEIGHT - BOTTOM, TOP)
    longest = max(len(name) for name in series)
    parts = [*_frame(title, "", up, max(0, 7 * longest + 32 - RIGHT)), *_ruled(y)]
    room = (WIDTH - RIGHT - LEFT) / len(groups)
    width = room * 0.84 / len(series)
    for g, group in enumerate(groups):
        middle = LEFT + room * (g + 0.5)
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(group)}</text>')
        for i, (name, values) in enumerate(series.items()):
            left, top, foot = middle - room * 0.42 + width * i, y.place(values[g]), y.place(base)
            told = f"<title>{escape(name)}, {escape(group)}: {values[g]:.3g}</title>"
            box = f'x="{left:.1f}" y="{min(top, foot):.1f}" width="{width:.1f}" height="{abs(foot - top):.1f}"'
            parts.append(f'<rect {box} fill="{COLOURS[i % len(COLOURS)]}">{told}</rect>')
    for i, name in enumerate(series):
        row, colour = TOP + 8 + 17 * i, COLOURS[i % len(COLOURS)]
        parts.append(f'<rect x="{WIDTH - RIGHT + 12}" y="{row - 5}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 27}" y="{row + 4}">{escape(name)}</text>')
    file.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _frame(title: str, across: str, up: str, more: float = 0) -> list[str]:
    """The sheet and its titles; `more`: pixels on the right for long names."""
    width = WIDTH + more
    size = f'viewBox="0 0 {width:g} {HEIGHT}" width="{width:g}" height="{HEIGHT}"'
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" font-size="11">',
        f'<rect width="{width:g}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="13" font-weight="600">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(13 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(up)}</text>',
    ]


def _ruled(y: _Axis) -> list[str]:
    """A line and its value at each tick of the upright axis."""
    parts = []
    for value in y.ticks():
        at = y.place(value)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    return parts


class _Axis:
    """Values -> pixels between two ends."""

    def __init__(self, values: Sequence[float], log: bool, start: float, stop: float) -> None:
        self.log, self.start, self.stop = log, start, stop
        low, high = min(values), max(values)
        if log:
            self.low, self.high = math.log(low / 1.08), math.log(high * 1.08)
        else:
            room = 0.04 * ((high - low) or 1)
            self.low, self.high = low - room, high + room

    def place(self, value: float) -> float:
        at = math.log(value) if self.log else value
        return self.start + (at - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        if not self.log:
            step = 10 ** math.floor(math.log10((self.high - self.low) or 1))
            step = next(step * f for f in (0.1, 0.2, 0.5, 1, 2, 5) if (self.high - self.low) / (step * f) <= 7)
            first = math.ceil(self.low / step)
            return [round(k * step, 10) for k in range(first, math.floor(self.high / step) + 1)]
        span = self.high - self.low
        fine = (1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
        steps = fine if span < 0.8 else (1, 1.5, 2, 3, 5, 7) if span < 1.8 else (1, 2, 5) if span < 5 else (1,)
        decades = range(math.floor(self.low / math.log(10)) - 1, math.ceil(self.high / math.log(10)) + 1)
        every = [round(s * 10.0**d, 12) for d in decades for s in steps]
        return [v for v in every if self.low <= math.log(v) <= self.high]
