"""evidence.json: why each removed unit could go, written from the statistics of the run (`cut/evidence.py`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `secateur explain` reads the file back without waiting for torch
    from torch import Tensor

    from secateur.cut.units import UnitCut
    from secateur.report.schema.evidence import Evidence, Passage, RemovedUnit, SiteEvidence

EVIDENCE = "evidence.json"
VERSION = 1
BEFORE, AFTER = 6, 2  # tokens shown around the one at which a unit was largest


def evidence_record(cuts: Sequence[UnitCut], tokens: Tensor, tokenizer: Any | None, refit: bool) -> Evidence:
    """The content of evidence.json.

    Args:
        cuts: those that carry evidence; others are left out.
        tokens: the calibration token ids (sequences, length) that they were made on.
        tokenizer: shows them as text; None = as ids.
        refit: whether consumers were solved anew.
    """
    sites: list[SiteEvidence] = []
    for cut in cuts:
        found = cut.evidence
        if found is None:
            continue
        gone = sorted(set(range(cut.site.units)) - set(cut.keep))
        removed: list[RemovedUnit] = [
            {
                "unit": unit,
                "bits": found.bits[row],
                "energy": found.energy[row],
                "restored": found.restored[row],
                "carriers": list(zip(found.predictors[row], found.shares[row], strict=True)),
                "fired": [
                    {"value": value, **_passage(tokens, place, tokenizer)}
                    for place, value in zip(found.places[row], found.values[row], strict=True)
                ],
            }
            for row, unit in enumerate(gone)
        ]
        site = cut.site
        sites.append(
            {"site": site.name, "kind": site.kind, "layer": site.layer, "units": site.units, "removed": removed}
        )
    return {"version": VERSION, "refit": refit, "sites": sites}


def _passage(tokens: Tensor, place: int, tokenizer: Any | None) -> Passage:
    """The token with this number, and the text around it."""
    row, at = divmod(place, tokens.shape[1])
    ids = tokens[row].tolist()

    def text(part: list[int]) -> str:
        return " ".join(map(str, part)) if tokenizer is None else str(tokenizer.decode(part))

    # Decoded with what is before, since some tokenizers drop the space that a text begins with.
    start, before = ids[max(at - BEFORE, 0) : at], ids[max(at - BEFORE, 0) : at + 1]
    left, up_to = text(start), text(before)
    token = up_to[len(left) :] if up_to.startswith(left) else text([ids[at]])
    everything = text(ids[max(at - BEFORE, 0) : at + 1 + AFTER])
    right = everything[len(up_to) :] if everything.startswith(up_to) else ""
    return {"before": left, "token": token, "after": right}


def evidence_json(record: Evidence) -> str:
    """JSON with each removed unit on one line."""
    sites = []
    for site in record["sites"]:
        head = json.dumps({key: value for key, value in site.items() if key != "removed"})[:-1]
        lines = ",\n   ".join(json.dumps(unit, ensure_ascii=False) for unit in site["removed"])
        sites.append(f'{head}, "removed": [\n   {lines}\n  ]}}')
    head = json.dumps({key: value for key, value in record.items() if key != "sites"})[:-1]
    return f'{head}, "sites": [\n  ' + ",\n  ".join(sites) + "\n ]}\n"
