"""Why a unit went: what a run has noted of every removed unit, as a file beside the checkpoint, and as answers.

evidence.json is written from the statistics of the run (`cut/evidence.py`); `explain` reads it and the report back.
Nothing is computed anew, so an explanation costs nothing and is the one that the cut was made on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr

from secateur.errors import InputError
from secateur.model.json_files import Json, Number, read_object
from secateur.model.site_kinds import REFITTED, WHOLE
from secateur.pipeline.results.evidence import EVIDENCE
from secateur.report.html.redundancy import summary
from secateur.report.schema.evidence import Explanation, GoneUnit, KeptUnit, SiteEvidence, SiteSummary

MOST_BYTES = 2**30  # evidence of a large model is long


def explain(
    out: str | Path, layer: int | None = None, unit: int | None = None, site: str | None = None
) -> Explanation:
    """Reads back what a finished run of `prune` noted about its cuts; computes nothing and loads no model.

    Args:
        out: the run's output folder.
        layer: of the original model; all unless given.
        unit: one unit of that layer, removed or kept.
        site: a kind of site, such as `channel`, or one of several of a kind, such as `latent[self_attn.kv_b_proj]`;
            needed with `unit` where a layer has several.

    Returns:
        `out`; `refit`; `sites` (one summary each, with its removed units if a layer was named); `layers` (whole
        layers and sub-blocks), `hidden`, `experts` and `linears` (what the report says of them); and `unit`, what was
        noted of the one that was named, or None.

    Raises:
        InputError: no run in the folder, or nothing in it about what was asked for.
    """
    folder = Path(out)
    report = _read(
        folder / "report.json", "no finished run; give the folder of a 'secateur prune --out'", _ReportFile
    )
    listed = [s for s in report.get("sites", []) if layer is None or s.get("layer") == layer]
    if layer is not None and not listed:
        layers = sorted({s["layer"] for s in report.get("sites", [])} - {None})
        raise InputError(
            f"nothing was cut in layer {layer}; layers with cuts: {', '.join(map(str, layers)) or 'none'}"
        )
    record: Json = {"sites": []}
    if any(s["kind"] in REFITTED and s["units"] > s["kept"] for s in listed):
        record = _read(folder / EVIDENCE, "no evidence; run prune again without --no-explain", _EvidenceFile)
    chosen: list[SiteEvidence] = [
        s for s in record["sites"] if layer in (None, s["layer"]) and site in (None, s["kind"], _within(s), s["site"])
    ]
    found: Explanation = {
        "out": str(out),
        "refit": record.get("refit"),
        "sites": [_summary(s, layer is not None) for s in chosen],
        "layers": [s for s in listed if s["kind"] in WHOLE],
        "hidden": [s for s in listed if s["kind"] == "hidden"],
        "experts": [s for s in listed if s["kind"] == "expert"],
        "linears": [s for s in listed if s["kind"] == "weight"],
        "unit": None,
    }
    if unit is not None:
        found["unit"] = _one(chosen, layer, unit)
    return found


def _summary(site: SiteEvidence, in_full: bool) -> SiteSummary:
    found = summary(site)
    if in_full:
        found["removed"] = site["removed"]
    return found


def _within(site: SiteEvidence) -> str:
    """What a site is called within its layer: `channel`, or `channel[mlp.shared_experts]`."""
    return site["site"].removeprefix(f"layers.{site['layer']}.")


def _one(sites: list[SiteEvidence], layer: int | None, unit: int) -> GoneUnit | KeptUnit:
    if layer is None:
        raise InputError(f"--unit {unit} names a unit of a layer; add --layer")
    if len(sites) != 1:
        names = ", ".join(_within(s) for s in sites) or "none"
        raise InputError(f"layer {layer} has several sites or none ({names}); name one with --site")
    site = sites[0]
    if not 0 <= unit < site["units"]:
        raise InputError(f"{site['site']} has units 0 to {site['units'] - 1}, not {unit}")
    own = next((r for r in site["removed"] if r["unit"] == unit), None)
    if own is not None:
        return {"site": site["site"], "kept": False, **own}
    carries = [
        (other["unit"], share, other["bits"])
        for other in site["removed"]
        for predictor, share in other["carriers"]
        if predictor == unit
    ]
    carries.sort(key=lambda entry: -entry[1])
    return {"site": site["site"], "kept": True, "unit": unit, "carries": carries}


class _Keys(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Fired(_Keys):
    value: Number
    before: StrictStr
    token: StrictStr
    after: StrictStr


class _Removed(_Keys):
    unit: StrictInt
    bits: Number
    energy: Number
    restored: Number
    carriers: list[tuple[StrictInt, Number]]
    fired: list[_Fired]


class _Evidence(_Keys):
    site: StrictStr
    kind: StrictStr
    layer: StrictInt
    units: StrictInt
    removed: list[_Removed]


class _EvidenceFile(_Keys):
    sites: list[_Evidence]


class _Site(_Keys):
    """What a site of the report has to say so that it can be shown."""

    name: StrictStr = ""
    kind: StrictStr
    layer: StrictInt | None = None
    units: StrictInt = 0
    kept: StrictInt = 0
    scores: list[Any] | None = None
    merged: list[Json] = []


class _ReportFile(_Keys):
    sites: list[_Site] = []


def _read(file: Path, lacking: str, keys: type[BaseModel]) -> Json:
    if not file.is_file():
        raise InputError(f"{file.parent}: {lacking}")
    return read_object(file, keys, MOST_BYTES)
