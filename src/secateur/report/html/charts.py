"""Geometry of the page's pictures; the templates draw it as inline SVG.

Hand-drawn SVG rather than a plotting library: the charts are boxes, dots and lines. The page has 30 to
200 kB instead of 5 MB, needs no script, follows the reader's light or dark theme, and prints sharply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.report import numbers as fmt
from secateur.report.facts import Report, Tally, group, items, lane, section

Lanes = dict[str, dict[int, Tally]]

PAGE_WIDTH, NARROW = 1030.0, 340.0  # pixels inside the page's margins, at its full width and on a phone
NAME = 18.0  # pixels above a lane, for its name
FEW, MANY = 14, 30  # layers that have room for figures on a phone, and on a tablet


@dataclass(frozen=True)
class Box:
    """One site (or several of one layer): a frame whose lower part, `fill` high, is what was removed.

    `x` and `width` are percentages of the picture's width, which is the screen's; `y`, `height`, `fill` are pixels.
    """

    x: float
    y: float
    width: float
    height: float
    fill: float
    label: str
    hint: str


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Tick(Text):
    """`fine`: there's no room for it on a narrow screen."""

    fine: bool = False


@dataclass(frozen=True)
class RemovalChart:
    """Layers from left to right, one lane per Linear or kind of unit, its name and total above it.

    `crowd`: from which screen on there's room for figures in boxes: everywhere (nothing), `many`, or `more` layers.
    """

    height: float
    boxes: list[Box]
    lanes: list[Text]
    totals: list[Text]
    ticks: list[Tick]
    crowd: str


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    hint: str


@dataclass(frozen=True)
class Panel:
    """Reconstruction error over the layers, for one Linear or kind of unit."""

    title: str
    caption: str
    before: list[Dot]
    after: list[Dot]
    links: list[tuple[Dot, Dot]]
    grid: list[Text]
    ticks: list[Text]


@dataclass(frozen=True)
class Bar:
    name: str
    seconds: str
    seconds_share: float
    memory: str
    memory_share: float


def lanes(report: Report) -> Lanes:
    """Sites of the per-layer kinds, tallied by lane and layer. Sites without a layer are not drawn."""
    placed = [site for site in items(report, "sites") if isinstance(site.get("layer"), int)]
    return {
        name: dict(sorted(group(tally.sites, lambda site: site["layer"]).items()))
        for name, tally in group(placed, lane).items()
    }


def layer_count(report: Report, drawn: Lanes) -> int:
    """Layers of the model, or as many as the sites show where the report does not say."""
    highest = max((layer for cells in drawn.values() for layer in cells), default=-1) + 1
    stated = section(report, "model").get("layers")
    return max(highest, stated if isinstance(stated, int) else 0)


def removal_chart(report: Report) -> RemovalChart | None:
    """The picture of what was removed where, or None without sites."""
    drawn = lanes(report)
    layers = layer_count(report, drawn)
    if not drawn or not layers:
        return None
    pitch, height = 100.0 / layers, 40.0 if len(drawn) <= 3 else 30.0
    boxes, names, totals = [], [], []
    for row, (name, cells) in enumerate(drawn.items()):
        y = NAME + row * (height + NAME + 8)
        names.append(Text(0, y - NAME / 2 - 1, name))
        whole = Tally([site for tally in cells.values() for site in tally.sites])
        totals.append(Text(100, y - NAME / 2 - 1, f"{fmt.percent(whole.sparsity)} removed"))
        for layer, tally in cells.items():
            boxes.append(_box(layer * pitch, y, pitch, height, name, layer, tally))
    bottom = len(drawn) * (height + NAME + 8) + 4
    return RemovalChart(bottom + 10, boxes, names, totals, layer_ticks(range(layers), bottom), crowd(layers))


def crowd(layers: int) -> str:
    """How much room there is for figures in boxes of so many layers; see `RemovalChart`."""
    return "" if layers <= FEW else "many" if layers <= MANY else "more"


def layer_ticks(layers: Sequence[int], y: float) -> list[Tick]:
    """Layer numbers below a picture as wide as the screen."""
    pitch = 100.0 / len(layers)
    fine = _ticks(len(layers), PAGE_WIDTH / len(layers), 26)
    coarse = fine[:: math.ceil(26 * len(layers) / (fine.step * NARROW))]
    return [Tick(round((i + 0.5) * pitch, 2), y, str(layers[i]), i not in coarse) for i in fine]


def _box(x: float, y: float, width: float, height: float, name: str, layer: int, tally: Tally) -> Box:
    sparsity = tally.sparsity
    share = min(max(sparsity, 0.0), 1.0) if sparsity is not None else 0.0
    units, kept = tally.total("units"), tally.total("kept")
    pixels = width / 100 * PAGE_WIDTH
    if units == len(tally.sites):  # whole blocks: there is no fraction to show, only gone or not
        label = "cut" if share == 1 else "" if share == 0 else f"{100 * share:.0f}"
        label = label if pixels >= 24 else ""
    else:
        label = f"{100 * share:.3g}%" if pixels >= 75 else f"{100 * share:.0f}" if pixels >= 19 else ""
    hint = f"layer {layer}, {name}: {fmt.percent(sparsity)} removed"
    if units is not None and kept is not None:
        hint += f", {fmt.count(kept)} of {fmt.count(units)} kept"
    return Box(round(x, 3), y, round(width, 3), height, round(share * height, 2), label, hint)


def error_panels(report: Report) -> list[Panel]:
    """One panel per lane that has a reconstruction error; all share one scale, so heights compare."""
    drawn = lanes(report)
    layers = layer_count(report, drawn)
    keys = ("error_before_refit", "error_after_refit")
    values = [t.mean(k) for cells in drawn.values() for t in cells.values() for k in keys]
    top = max((value for value in values if value is not None), default=0.0)
    if top <= 0:
        return []
    ceiling = _nice(top)
    panels = [_panel(name, cells, layers, ceiling) for name, cells in drawn.items()]
    return [panel for panel in panels if panel.before or panel.after]


def _panel(name: str, cells: Mapping[int, Tally], layers: int, ceiling: float) -> Panel:
    left, right, top, bottom = 38.0, 292.0, 10.0, 118.0
    pitch = (right - left) / max(layers, 1)

    def dots(key: str, word: str) -> dict[int, Dot]:
        found = {}
        for layer, tally in cells.items():
            value = tally.mean(key)
            if value is not None:
                y = bottom - (bottom - top) * min(max(value / ceiling, 0.0), 1.0)
                hint = f"layer {layer}: {fmt.number(value)} {word}"
                found[layer] = Dot(round(left + (layer + 0.5) * pitch, 2), round(y, 2), hint)
        return found

    before, after = dots("error_before_refit", "before refit"), dots("error_after_refit", "after refit")
    whole = Tally([site for tally in cells.values() for site in tally.sites])
    means = [whole.mean("error_before_refit"), whole.mean("error_after_refit")]
    caption = "mean " + " → ".join(fmt.numbers(mean for mean in means if mean is not None))
    grid = [Text(left, bottom - (bottom - top) * part, fmt.number(ceiling * part)) for part in (0, 0.5, 1)]
    ticks = [Text(left + (i + 0.5) * pitch, bottom + 14, str(i)) for i in _ticks(layers, pitch, 24)]
    links = [(before[layer], after[layer]) for layer in before if layer in after]
    return Panel(name, caption, list(before.values()), list(after.values()), links, grid, ticks)


def stage_bars(report: Report) -> list[Bar]:
    """Seconds and peak memory of each stage, with bars relative to the largest of their column."""
    stages = items(report, "stages")
    longest = _largest(stages, "seconds")
    highest = _largest(stages, "peak_memory_bytes")
    return [
        Bar(
            fmt.text(stage.get("name")),
            fmt.seconds(stage.get("seconds")),
            _share(stage.get("seconds"), longest),
            fmt.size(stage.get("peak_memory_bytes")),
            _share(stage.get("peak_memory_bytes"), highest),
        )
        for stage in stages
    ]


def _largest(stages: Sequence[Mapping[str, Any]], key: str) -> float:
    return max((stage[key] for stage in stages if fmt.is_number(stage.get(key))), default=0.0)


def _share(value: Any, largest: float) -> float:
    return round(100 * value / largest, 1) if fmt.is_number(value) and largest > 0 else 0.0


def _nice(value: float) -> float:
    """The smallest round number that is not below `value`, chosen so that its half prints short."""
    power: float = 10.0 ** math.floor(math.log10(value))
    return next((power * step for step in (1, 2, 3, 4, 5, 6, 8) if value <= power * step * 1.0000001), power * 10)


def _ticks(layers: int, pitch: float, room: float) -> range:
    """Layer numbers to print: every 1st, 2nd, 4th, 5th, 10th ... so that each has `room` to stand in."""
    steps = (1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 50, 64, 100)
    return range(0, layers, next((step for step in steps if step * pitch >= room), layers))
