"""The picture of who carries whom: units of a site on a circle, lines from each removed one to those that know it.

Geometry only, as in `charts.py`; the template draws it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.report import numbers as fmt
from secateur.report.schema.evidence import SiteSummary

SIZE, RADIUS = 300.0, 138.0
MOST_LINKS = 400  # the strongest; more would be a blot
MOST_SPOTS = 600  # of wider sites only units that went or that know one are drawn, the loudest of those
MOST_CIRCLES = 48


@dataclass(frozen=True)
class Spot:
    """A unit on the circle; `size` is its radius."""

    x: float
    y: float
    size: float
    gone: bool
    hint: str


@dataclass(frozen=True)
class Link:
    """From a removed unit to a kept one that knows it, bent towards the middle."""

    path: str
    opacity: float


@dataclass(frozen=True)
class Circle:
    title: str
    caption: str
    spots: list[Spot]
    links: list[Link]


def circles(evidence: Mapping[str, Any] | None) -> list[Circle]:
    """One picture for each site with removed units, in the order of the file."""
    sites = (evidence or {}).get("sites") or []
    return [circle(site) for site in sites if site.get("removed")][:MOST_CIRCLES]


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


def circle(site: Mapping[str, Any]) -> Circle:
    """A removed unit is the larger, the more it wrote; a kept one, the more removed ones lean on it."""
    everyone: Sequence[Mapping[str, Any]] = site["removed"]
    count = int(site["units"])
    removed = sorted(everyone, key=lambda unit: -float(unit["energy"]))[: MOST_SPOTS // 2]
    leaning: dict[int, float] = {}
    lines: list[tuple[float, int, int]] = []
    for unit in removed:
        for predictor, share in unit["carriers"]:
            if share > 0:
                weight = share * unit["restored"]
                leaning[predictor] = leaning.get(predictor, 0.0) + weight
                lines.append((weight, unit["unit"], predictor))
    lines.sort(key=lambda line: (-line[0], line[1], line[2]))
    highest = max((unit["energy"] for unit in removed), default=0.0) or 1.0
    spots = []
    gone = {unit["unit"]: unit for unit in removed}
    for index in range(count):
        x, y = _place(index, count)
        if index in gone:
            unit = gone[index]
            hint = f"unit {index}, removed: {fmt.number(unit['bits'])} bits known, "
            hint += f"{fmt.percent(unit['energy'])} of the output"
            spots.append(Spot(x, y, round(1.2 + 3.3 * math.sqrt(unit["energy"] / highest), 2), True, hint))
        elif index in leaning:
            size = round(1.2 + 0.9 * math.sqrt(leaning[index]), 2)
            hint = f"unit {index}, kept: stands in for {fmt.number(leaning[index])} of a removed unit"
            spots.append(Spot(x, y, min(size, 6.0), False, hint))
        elif count <= MOST_SPOTS:
            spots.append(Spot(x, y, 0.8, False, f"unit {index}, kept"))
    links = [_link(weight, source, target, count) for weight, source, target in lines[:MOST_LINKS]]
    bits = sorted(unit["bits"] for unit in everyone)
    caption = f"{len(everyone)} of {count} removed, median {fmt.number(bits[len(bits) // 2])} bits known"
    return Circle(str(site["site"]), caption, spots, links)


def _place(index: int, count: int) -> tuple[float, float]:
    angle = 2 * math.pi * index / max(count, 1) - math.pi / 2
    return round(SIZE / 2 + RADIUS * math.cos(angle), 1), round(SIZE / 2 + RADIUS * math.sin(angle), 1)


def _link(weight: float, source: int, target: int, count: int) -> Link:
    (x1, y1), (x2, y2) = _place(source, count), _place(target, count)
    middle = SIZE / 2
    bend = (round(middle + 0.2 * (x1 + x2 - SIZE), 1), round(middle + 0.2 * (y1 + y2 - SIZE), 1))
    return Link(f"M{x1} {y1}Q{bend[0]} {bend[1]} {x2} {y2}", round(min(max(math.sqrt(weight), 0.25), 1.0), 2))
