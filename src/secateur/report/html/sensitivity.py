"""What `secateur sensitivity` shows: a coloured table on the terminal, the same as a page with a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.text import Text

from secateur.report import numbers as fmt
from secateur.report.html.charts import NAME, PAGE_WIDTH, crowd, layer_ticks
from secateur.report.html.page import environment
from secateur.report.terminal.console import Console
from secateur.report.terminal.table import Column, Table

Facts = Mapping[str, Any]
# An absolute scale, in nats: a value belongs to the first band whose end it's below. Harmless to ruinous.
BANDS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, math.inf)
COLOURS = ("#2c7bb6", "#6aadd0", "#b5d3de", "#e8e2c4", "#f5b878", "#ea6b42", "#b5131a")
HEIGHT, LANE = 24.0, 48.0  # pixels of a cell, and from one lane to the next
INKS = ("#ffffff", "#111111", "#111111", "#111111", "#111111", "#111111", "#ffffff")


@dataclass(frozen=True)
class Cell:
    x: float
    y: float
    width: float
    height: float
    colour: str
    ink: str
    label: str
    hint: str


def columns_of(found: Facts) -> list[tuple[str, float]]:
    """(kind, level) in the order of the record."""
    return list(dict.fromkeys((row["kind"], row["level"]) for row in found["sites"]))


def band(kl: float) -> int:
    """Which of the bands a value is in."""
    return next(n for n, end in enumerate(BANDS) if kl < end or end == math.inf)


def legend() -> list[tuple[str, str, str]]:
    """(colour, text colour, what it stands for) of every band."""
    names = [f"below {BANDS[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(BANDS[:-1]))]
    return list(zip(COLOURS, INKS, [*names, f"above {BANDS[-2]:g}"], strict=True))


def conclusion(found: Facts) -> str:
    """In words: what costs most and least at the level that all sites have in common, and what to do about it."""
    level = max((row["level"] for row in found["sites"]), default=None)
    rows = sorted((row for row in found["sites"] if row["level"] == level), key=lambda row: row["kl"])
    if len(rows) < 2:
        return ""
    worst, best = rows[-1], rows[0]
    factor = worst["kl"] / best["kl"] if best["kl"] > 0 else math.inf
    most, least = fmt.numbers((worst["kl"], best["kl"]))
    said = (
        f"With {fmt.percent(level)} cut, layer {worst['layer']} ({worst['kind']}) costs most, "
        f"{most} nats, and layer {best['layer']} ({best['kind']}) least, {least}."
    )
    if factor < 2:
        return f"{said} They hardly differ: --allocate local is as good as any."
    return f"{said} Try --protect {worst['layer']}, or --allocate sensitivity, which shares it out by this."


def print_sensitivity(found: Facts, page: Path | None = None, console: Console | None = None) -> None:
    """Rows are layers, columns are what was cut, cells are KL in nats per token."""
    console = console or Console()
    by_place = {(row["layer"], row["kind"], row["level"]): row["kl"] for row in found["sites"]}
    for kind in dict.fromkeys(kind for kind, _ in columns_of(found)):
        levels = [level for name, level in columns_of(found) if name == kind]
        table = Table(*(Column(name, right=True) for name in ("layer", *map(fmt.percent, levels))))
        layers = sorted({row["layer"] for row in found["sites"] if row["kind"] == kind})
        columns = [_heat([by_place.get((layer, kind, level)) for layer in layers]) for level in levels]
        for layer, *cells in zip(layers, *columns, strict=True):
            table.add_row(str(layer), *cells)
        console.print(Text(f"\n{kind} ({found['methods'].get(kind, '')})", "bold"))
        console.print(table)
    console.print(
        f"\nKL of the predictions to those of the untouched model, nats per token, with one site cut alone; "
        f"{fmt.count(found['tokens'])} tokens of {found['calibration']}",
        style="dim",
        highlight=False,
    )
    if said := conclusion(found):
        console.print(said, style="bold", highlight=False)
    if page is not None:
        console.print(f"The heat map is in {page}", highlight=False, soft_wrap=True)


def _heat(column: list[float | None]) -> list[Text]:
    """Cells of one column, coloured by what they say."""
    return [
        Text(fmt.MISSING) if kl is None else Text(f" {shown} ", f"{INKS[band(kl)]} on {COLOURS[band(kl)]}")
        for kl, shown in zip(column, fmt.numbers(column), strict=True)
    ]


def cells_of(found: Facts) -> tuple[list[Cell], float]:
    """(cells, height) of the heat map: layers from left to right, one lane for each kind and level, its name above.

    `x` and `width` are percentages of the screen.
    """
    lanes = columns_of(found)
    layers = sorted({row["layer"] for row in found["sites"]})
    width = 100.0 / max(len(layers), 1)
    cells = []
    for row in found["sites"]:
        y = lanes.index((row["kind"], row["level"])) * LANE + NAME
        hint = f"{row['site']}, {fmt.percent(row['level'])} cut: KL {fmt.number(row['kl'])}"
        label = _brief(row["kl"]) if width / 100 * PAGE_WIDTH >= 27 else ""
        shown = band(row["kl"])
        x = round(layers.index(row["layer"]) * width, 3)
        cells.append(Cell(x, y, round(width, 3), HEIGHT, COLOURS[shown], INKS[shown], label, hint))
    return cells, len(lanes) * LANE + 24


def _brief(kl: float) -> str:
    """Two digits that count, in as few letters as that takes: .012, .35, 1.5."""
    if kl < 0.0005:
        return "0"
    return f"{kl:.1f}" if kl >= 1 else f"{kl:.{2 if kl >= 0.0995 else 3}f}".lstrip("0")


def write_page(found: Facts, file: Path) -> None:
    """One HTML file without scripts that fetches nothing."""
    cells, height = cells_of(found)
    layers = sorted({row["layer"] for row in found["sites"]})
    text = (
        environment()
        .get_template("sensitivity.html.j2")
        .render(
            found=found,
            cells=cells,
            height=height,
            lanes=[
                (n * LANE + NAME / 2, f"{kind} {fmt.percent(level)}")
                for n, (kind, level) in enumerate(columns_of(found))
            ],
            ticks=layer_ticks(layers, height - 12),
            crowd=crowd(len(layers)),
            legend=legend(),
            conclusion=conclusion(found),
        )
    )
    file.write_text(text, encoding="utf-8")
