"""What may be cut of a model that has to run in a certain program."""

from __future__ import annotations

import math

from secateur.errors import InputError
from secateur.model.clients import CLIENTS, notes_of, refusal
from secateur.model.site_kinds import HEADS, KINDS, SUB_BLOCKS
from secateur.report.schema.model import ClientFacts, Inspected, SiteRow


def for_client(found: Inspected, name: str, *, causal: bool, head_dim: int) -> Inspected:
    """The anatomy with the counts that a client takes, and what it refuses.

    Raises:
        InputError: it runs no such models at all.
    """
    client, model_type = CLIENTS[name], found["model_type"]
    reason = refusal(name, model_type, causal=causal)
    if reason is not None:
        raise InputError(reason)
    refused: dict[str, str] = {}
    rows: list[SiteRow] = []
    for row in found["sites"]:
        kind = row["kind"]
        whole = {part: kind == part for part in SUB_BLOCKS}
        cut = {"heads": kind in HEADS, "latents": KINDS[kind].normed, "layers": kind == "layer", **whole}
        told = refusal(name, model_type, causal=causal, **cut)
        if told is not None:
            refused[kind] = told
            rows.append({**row, "keep": [], "legal": "none may go"})
        else:
            step = {"channel": client.channels, "hidden": client.hidden}.get(kind, 1)
            rows.append(_in_steps(row, step))
    uneven = refusal(name, model_type, uneven=True, causal=causal)
    notes = [*notes_of(name, head_dim), *([uneven] if uneven is not None else [])]
    facts: ClientFacts = {
        "name": name,
        "tried": client.tried,
        "how": client.how,
        "refused": refused,
        "notes": notes,
    }
    return {**found, "sites": rows, "client": facts}


def _in_steps(row: SiteRow, step: int) -> SiteRow:
    """A row whose counts are multiples of a number too."""
    keep = row["keep"]
    if step == 1 or not isinstance(keep, dict):
        return row
    both, most = math.lcm(step, keep["step"]), keep["to"]
    if both > most:
        return {**row, "keep": [], "legal": f"none may go: no multiple of {both} is below {most}"}
    return {**row, "keep": {"from": both, "to": most, "step": both}, "legal": f"{both} to {most} by {both}"}
