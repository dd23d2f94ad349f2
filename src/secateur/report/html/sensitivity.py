"""What `secateur sensitivity` shows: a coloured table on the terminal, the same as a page with a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from rich.text import Text

from secateur.report import numbers as fmt
from secateur.report.terminal.console import Console
from secateur.report.terminal.table import Column, Table

Facts = Mapping[str, Any]
# From harmless to ruinous; the middle stays readable on light and dark.
COLOURS = ("#2c7bb6", "#7fb8d6", "#d9d7c5", "#f0a36b", "#d7191c")


@dataclass(frozen=True)
class Cell:
    x: float
    y: float
    width: float
    height: float
    colour: str
    label: str
    hint: str


def columns_of(found: Facts) -> list[tuple[str, float]]:
    """(kind, level) in the order of the record."""
    return list(dict.fromkeys((row["kind"], row["level"]) for row in found["sites"]))


def shade(kl: float, values: list[float]) -> float:
    """Place of a value between the least and the largest, by their logarithms, in [0, 1]."""
    positive = [math.log(value) for value in values if value > 0]
    if kl <= 0 or not positive or max(positive) == min(positive):
        return 0.0
    return (math.log(kl) - min(positive)) / (max(positive) - min(positive))


def colour(part: float) -> str:
    return COLOURS[min(int(part * len(COLOURS)), len(COLOURS) - 1)]


def print_sensitivity(found: Facts, page: Path | None = None, console: Console | None = None) -> None:
    """Rows are layers, columns are what was cut, cells are KL in nats per token."""
    console = console or Console()
    by_place = {(row["layer"], row["kind"], row["level"]): row["kl"] for row in found["sites"]}
    values = list(by_place.values())
    for kind in dict.fromkeys(kind for kind, _ in columns_of(found)):
        levels = [level for name, level in columns_of(found) if name == kind]
        table = Table(*(Column(name, right=True) for name in ("layer", *map(fmt.percent, levels))))
        for layer in sorted({row["layer"] for row in found["sites"] if row["kind"] == kind}):
            cells = []
            for level in levels:
                kl = by_place.get((layer, kind, level))
                style = "" if kl is None else f"black on {colour(shade(kl, values))}"
                cells.append(Text(fmt.MISSING if kl is None else f" {fmt.number(kl)} ", style))
            table.add_row(str(layer), *cells)
        console.print(Text(f"\n{kind} ({found['methods'].get(kind, '')})", "bold"))
        console.print(table)
    console.print(
        f"\nKL of the predictions to those of the untouched model, nats per token, with one site cut alone; "
        f"{fmt.count(found['tokens'])} tokens of {found['calibration']}",
        style="dim",
        highlight=False,
    )
    if page is not None:
        console.print(f"The heat map is in {page}", highlight=False, soft_wrap=True)


def cells_of(found: Facts) -> tuple[list[Cell], float, float]:
    """(cells, width, height) of the heat map: layers from left to right, one lane for each kind and level."""
    lanes = columns_of(found)
    layers = sorted({row["layer"] for row in found["sites"]})
    values = [row["kl"] for row in found["sites"]]
    left, height = 170.0, 26.0
    width = min(60.0, 860.0 / max(len(layers), 1))
    cells = []
    for row in found["sites"]:
        x = left + layers.index(row["layer"]) * width
        y = lanes.index((row["kind"], row["level"])) * height
        hint = f"{row['site']}, {fmt.percent(row['level'])} cut: KL {fmt.number(row['kl'])}"
        label = fmt.number(row["kl"]) if width >= 44 else ""
        cells.append(Cell(x, y, width - 1, height - 1, colour(shade(row["kl"], values)), label, hint))
    return cells, left + len(layers) * width, len(lanes) * height + 20


def write_page(found: Facts, file: Path) -> None:
    """One HTML file without scripts that fetches nothing."""
    cells, width, height = cells_of(found)
    layers = sorted({row["layer"] for row in found["sites"]})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("secateur.report.html", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"percent": fmt.percent, "number": fmt.number, "count": fmt.count})
    text = environment.get_template("sensitivity.html.j2").render(
        found=found, cells=cells, width=width, height=height, lanes=columns_of(found), layers=layers
    )
    file.write_text(text, encoding="utf-8")
