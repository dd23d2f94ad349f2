"""Who stands in for whom: of each site the removed units that wrote most, against the kept units that know them.

Geometry only, as in `charts.py`; the template draws it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secateur.report import numbers as fmt
from secateur.report.schema.evidence import SiteSummary

LEFT, TOP, CELL = 128.0, 34.0, 15.0
MOST_ROWS, MOST_COLUMNS, MOST_MATRICES = 12, 16, 24


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Cell:
    """How much of what is known of a removed unit (row) one kept unit (column) knows: the area of a square."""

    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Line:
    """A removed unit: its cells, and the same in words, with those that know too little to have a column."""

    unit: str
    energy: float
    restored: float
    known_by: str
    cells: list[Cell]


@dataclass(frozen=True)
class Matrix:
    """One site: removed units down, the one that wrote most first; kept ones across, those most leaned on first."""

    title: str
    caption: str
    width: float
    height: float
    rows: list[Label]
    columns: list[Label]
    lines: list[Line]


def matrices(evidence: Mapping[str, Any] | None) -> list[Matrix]:
    """One for each site with removed units; of many, those whose removed units wrote most, in the file's order."""
    sites = [site for site in (evidence or {}).get("sites") or [] if site.get("removed")]
    loud = sorted(range(len(sites)), key=lambda n: -sum(unit["energy"] for unit in sites[n]["removed"]))
    return [matrix(sites[n]) for n in sorted(loud[:MOST_MATRICES])]


def matrix(site: Mapping[str, Any]) -> Matrix:
    """The picture of one site."""
    removed = sorted(site["removed"], key=lambda unit: -float(unit["energy"]))[:MOST_ROWS]
    leaning: dict[int, float] = {}
    for unit in removed:
        for predictor, share in unit["carriers"]:
            leaning[predictor] = leaning.get(predictor, 0.0) + share * unit["restored"]
    columns = sorted(leaning, key=lambda unit: (-leaning[unit], unit))[:MOST_COLUMNS]
    place = {unit: LEFT + n * CELL for n, unit in enumerate(columns)}
    lines = [
        Line(
            str(unit["unit"]),
            unit["energy"],
            unit["restored"],
            ", ".join(f"{predictor} ({fmt.percent(share)})" for predictor, share in unit["carriers"] if share > 0),
            [
                _square(place[predictor], TOP + row * CELL, share)
                for predictor, share in unit["carriers"]
                if predictor in place and share > 0
            ],
        )
        for row, unit in enumerate(removed)
    ]
    count = len(site["removed"])
    more = f", the {len(removed)} that wrote most" if count > len(removed) else ""
    return Matrix(
        str(site["site"]),
        f"{count} of {site['units']} removed{more}",
        LEFT + CELL * max(len(columns), 1) + 16,
        TOP + CELL * len(removed) + 4,
        [
            Label(LEFT - 6, TOP + (n + 0.5) * CELL, f"{unit['unit']} · {fmt.percent(unit['energy'])}")
            for n, unit in enumerate(removed)
        ],
        [Label(place[unit] + CELL / 2, TOP - 6, str(unit)) for unit in columns],
        lines,
    )


def _square(x: float, y: float, share: float) -> Cell:
    side = round(max(2.5, (CELL - 1) * min(1.0, share) ** 0.5), 1)
    return Cell(round(x + (CELL - side) / 2, 2), round(y + (CELL - side) / 2, 2), side)


def loudest(evidence: Mapping[str, Any] | None, count: int = 20) -> list[tuple[str, Mapping[str, Any]]]:
    """(site, unit) of the removed units that wrote most of their reader's output."""
    sites = (evidence or {}).get("sites") or []
    units = [(str(site["site"]), unit) for site in sites for unit in site.get("removed") or ()]
    return sorted(units, key=lambda pair: -float(pair[1]["energy"]))[:count]


def summary(site: Mapping[str, Any]) -> SiteSummary:
    """What the removed units of a site have in common."""
    removed = site["removed"]
    bits = sorted(unit["bits"] for unit in removed)
    energy = sum(unit["energy"] for unit in removed)
    given = sum(unit["energy"] * unit["restored"] for unit in removed)
    return {
        "site": site["site"],
        "kind": site["kind"],
        "layer": site["layer"],
        "units": site["units"],
        "removed_count": len(removed),
        "median_bits": bits[len(bits) // 2] if bits else None,
        "energy": energy,
        "restored": given / energy if energy > 0 else None,
    }
