"""What a search has found, as search.json says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur._version import __version__
from secateur.config.searching import SearchSettings
from secateur.config.wishes import PERPLEXITY, TASK, Wish
from secateur.pipeline.inputs import Inputs
from secateur.report.schema.report import Report
from secateur.report.schema.search import CandidateFacts, PieceFacts, SearchReport, WishFacts
from secateur.search.predict import Costs, measured_pieces, rank_correlation
from secateur.search.refine import Tried
from secateur.search.space import Candidate, Piece, Space
from secateur.search.trial import evaluated
from secateur.search.wanted import Measures
from secateur.system.monitor import Monitor

NEAR = 0.02  # of a bound: what comes so near is limited by it


def told(
    settings: SearchSettings,
    inputs: Inputs,
    space: Space,
    measures: Measures,
    costs: Costs,
    tried: Sequence[Tried],
    chosen: Candidate | None,
    plans: Mapping[Candidate, str],
    report: Report | None,
    monitor: Monitor,
) -> SearchReport:
    """The document.

    Args:
        chosen: the candidate that was made; None where there's only a front.
        plans: candidate -> name of its plan.
        report: of the prune that made the choice.
    """
    wishes = [_wish(wish, measures, chosen, report) for wish in settings.wishes]
    c = inputs.calibration
    return {
        "secateur": __version__,
        "model": settings.model,
        "settings": settings.model_dump(mode="json", exclude_unset=True),
        "calibration": {"source": c.source, "data_sha256": c.source_sha256, "samples": len(c.tokens)},
        "tokens": evaluated(c.tokens).numel(),
        "layers": space.layers,
        "whole": dict(measures.whole),
        "wishes": wishes,
        "pieces": pieces_of(space, measures, costs),
        "candidates": [_candidate(one, space, measures, one.candidate == chosen, plans) for one in tried],
        "rank_correlation": rank_correlation([t.predicted for t in tried], [t.measured for t in tried]),
        "limited_by": limited_by(wishes, chosen),
        "perplexity": _perplexity(report),
        "stages": [dict(stage) for stage in monitor.facts()],
    }


def pieces_of(space: Space, measures: Measures, costs: Costs) -> list[PieceFacts]:
    """What each piece saves and costs alone."""
    alone = set(measured_pieces(space))
    return [
        {
            "site": site_of(piece),
            "layer": piece.layer,
            "kind": piece.kind,
            "share": space.shares[piece],
            "saves": {about: saves[piece] for about, saves in measures.saves.items()},
            "kl": costs[piece],
            "measured": piece in alone,
        }
        for piece in sorted(space.saves)
    ]


def site_of(piece: Piece) -> str:
    """As plans name it."""
    return f"layers.{piece.layer}.{piece.kind}"


def _candidate(
    one: Tried, space: Space, measures: Measures, chosen: bool, plans: Mapping[Candidate, str]
) -> CandidateFacts:
    return {
        "pieces": [(site_of(piece), space.shares[piece]) for piece in one.candidate],
        "predicted": one.predicted,
        "measured": one.measured,
        "takes": measures.all_left(one.candidate),
        "chosen": chosen,
        "plan": plans.get(one.candidate),
    }


def _wish(wish: Wish, measures: Measures, chosen: Candidate | None, report: Report | None) -> WishFacts:
    whole, got = _values(wish, measures, chosen, report)
    known = whole is not None and got is not None
    return {
        "wish": wish.text,
        "about": wish.about,
        "limit": wish.limit(whole or 0.0),
        "whole": whole or 0.0,
        "got": got,
        "held": wish.held(got or 0.0, whole or 0.0) if known else None,
    }


def _values(
    wish: Wish, measures: Measures, chosen: Candidate | None, report: Report | None
) -> tuple[float | None, float | None]:
    """(the untouched model's, the result's) value of what a wish is about."""
    if wish.about == PERPLEXITY:
        found = _perplexity(report)
        return (None, None) if found is None else (found["before"], found["after"])
    if wish.about == TASK:
        return None, None
    whole = measures.whole[wish.about]
    if wish.about == "params" and report is not None:
        return whole, float(report["parameters"]["after"])
    return whole, None if chosen is None else measures.left(wish.about, chosen)


def _perplexity(report: Report | None) -> dict[str, float] | None:
    """Before and after, on the run's own evaluation text."""
    found: Any = None if report is None else report.get("evaluation")
    found = found or {}
    values = {side: (found.get(side) or {}).get("perplexity") for side in ("before", "after")}
    known = {side: float(value) for side, value in values.items() if value is not None}
    return known if len(known) == 2 else None


def limited_by(wishes: Sequence[WishFacts], chosen: Candidate | None) -> str:
    """In words: what keeps the result from being better."""
    if not wishes:
        return "nothing: this is the front of what can be had"
    broken = [wish["wish"] for wish in wishes if wish["held"] is False]
    if broken:
        return f"{' and '.join(broken)}: not held"
    near = [w["wish"] for w in wishes if w["got"] is not None and abs(w["got"] - w["limit"]) <= NEAR * w["limit"]]
    return f"{' and '.join(near)}: what goes is as little as that allows" if near else "how coarse the pieces are"
