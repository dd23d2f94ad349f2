"""evidence.json, and `explain --json`, which reads it back."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict

from secateur.report.schema.report import SiteFacts


class Passage(TypedDict):
    """A token and the text around it."""

    before: str
    token: str
    after: str


class Fired(Passage):
    """Where a unit was largest."""

    value: float


class RemovedUnit(TypedDict):
    """Why a unit could go; `carriers`: (kept unit, its share of what is known of this one)."""

    unit: int
    bits: float
    energy: float
    restored: float
    carriers: list[tuple[int, float]]
    fired: list[Fired]


class SiteEvidence(TypedDict):
    """One site that lost units."""

    site: str
    kind: str
    layer: int
    units: int
    removed: list[RemovedUnit]


class Evidence(TypedDict):
    """evidence.json."""

    version: int
    refit: bool
    sites: list[SiteEvidence]


class SiteSummary(TypedDict):
    """What the removed units of a site have in common."""

    site: str
    kind: str
    layer: int
    units: int
    removed_count: int
    median_bits: float | None
    energy: float
    restored: float | None
    removed: NotRequired[list[RemovedUnit]]


class GoneUnit(RemovedUnit):
    """The answer for a unit that went."""

    site: str
    kept: bool


class KeptUnit(TypedDict):
    """The answer for one that stays; `carries`: (removed unit, this one's share of what is known of it, bits)."""

    site: str
    kept: bool
    unit: int
    carries: list[tuple[int, float, float]]


class Explanation(TypedDict):
    """`explain --json`."""

    out: str
    refit: bool | None
    sites: list[SiteSummary]
    layers: list[SiteFacts]
    hidden: list[SiteFacts]
    experts: list[SiteFacts]
    linears: list[SiteFacts]
    unit: GoneUnit | KeptUnit | None
