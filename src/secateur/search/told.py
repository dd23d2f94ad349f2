"""What a search has found, as search.json says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from secateur._version import __version__
from secateur.config.searching import SearchSettings
from secateur.config.wishes import Wish, parse_wish
from secateur.pipeline.inputs import Inputs
from secateur.report.schema.report import Report
from secateur.report.schema.search import (
    CandidateFacts,
    FinalistFacts,
    HiddenFacts,
    PieceFacts,
    SearchReport,
    TimedFacts,
    WishFacts,
)
from secateur.search.found import Found, TimedCandidate
from secateur.search.latency import OFF, TIMES
from secateur.search.make import Made, judged
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
    found: Found,
    made: Made | None,
    plans: Mapping[Candidate, str],
    compared: Mapping[Candidate, float],
    hidden: Sequence[HiddenFacts],
    monitor: Monitor,
) -> SearchReport:
    """The document.

    Args:
        made: the choice; None where there's only a front.
        plans: candidate -> name of its plan.
        hidden: what came of each level of hidden dimensions.
        compared: the finalists, with the perplexity that each has as a model.
    """
    report = None if made is None else made.report
    chosen = None if made is None else made.candidate
    wishes = [_wish(wish, found, made) for wish in settings.wishes]
    c = inputs.calibration
    plans = plans if chosen is None else {chosen: "plan.json"}
    front = set(found.front)
    return {
        "secateur": __version__,
        "model": settings.model,
        "settings": settings.model_dump(mode="json", exclude_unset=True),
        "calibration": {"source": c.source, "data_sha256": c.source_sha256, "samples": len(c.tokens)},
        "tokens": evaluated(c.tokens).numel(),
        "layers": found.space.layers,
        "whole": dict(found.measures.whole),
        "wishes": wishes,
        "pieces": pieces_of(found.space, found.measures, found.costs),
        "candidates": [_candidate(one, found, chosen, one.candidate in front, plans) for one in found.tried],
        "hidden": list(hidden),
        "formats": list(found.formats),
        "finalists": [_finalist(one, compared[one], found, chosen) for one in compared],
        "timed": [_timed(one) for one in found.timed],
        "rank_correlation": rank_correlation([t.predicted for t in found.tried], [t.measured for t in found.tried]),
        "limited_by": limited_by(wishes),
        "perplexity": _perplexity(report),
        "machine": {"device": str(inputs.streamed.device), "threads": torch.get_num_threads()},
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
    one: Tried, found: Found, chosen: Candidate | None, front: bool, plans: Mapping[Candidate, str]
) -> CandidateFacts:
    return {
        "pieces": [(site_of(piece), found.space.shares[piece]) for piece in one.candidate],
        "predicted": one.predicted,
        "measured": one.measured,
        "takes": found.measures.all_left(one.candidate),
        "chosen": one.candidate == chosen,
        "front": front,
        "plan": plans.get(one.candidate),
    }


def _finalist(candidate: Candidate, perplexity: float, found: Found, chosen: Candidate | None) -> FinalistFacts:
    own = next(one for one in found.tried if one.candidate == candidate)
    pieces = [(site_of(piece), found.space.shares[piece]) for piece in candidate]
    return {"pieces": pieces, "kl": own.measured, "perplexity": perplexity, "chosen": candidate == chosen}


def _timed(one: TimedCandidate) -> TimedFacts:
    return {
        "pieces": [(site_of(piece), piece.level) for piece in one.candidate],
        "whole": one.whole._asdict(),
        "predicted": one.predicted._asdict(),
        "measured": one.measured._asdict(),
    }


def _wish(wish: Wish, found: Found, made: Made | None) -> WishFacts:
    whole, got = _values(wish, found, made)
    known = whole is not None and got is not None
    near = wish.about in TIMES and known and (got or 0.0) <= (1 + OFF) * wish.limit(whole or 0.0)
    return {
        "wish": wish.text,
        "about": wish.about,
        "limit": wish.limit(whole or 0.0),
        "whole": whole,
        "got": got,
        "held": near or wish.held(got or 0.0, whole or 0.0) if known else None,
    }


def _values(wish: Wish, found: Found, made: Made | None) -> tuple[float | None, float | None]:
    """(the untouched model's, the result's) value of what a wish is about."""
    if not wish.of_cost:
        return judged(wish, None if made is None else made.report)
    if wish.about in TIMES and found.timed:
        place = TIMES.index(wish.about)
        last = [one for one in found.timed if made is None or one.candidate == made.candidate][-1]
        return last.whole[place], last.measured[place]
    whole = found.measures.whole[wish.about]
    if wish.about == "params" and made is not None:
        return whole, float(made.report["parameters"]["after"])
    if made is None:
        return whole, None
    left = found.measures.left(wish.about, made.candidate)
    if (
        found.form is not None and found.form.export and wish.about in ("size", "memory")
    ):  # the file is there, so its bytes are known
        left += made.report["export"]["bytes_after"] - found.measures.left("size", made.candidate)
    return whole, left


def _perplexity(report: Report | None) -> dict[str, float] | None:
    """Before and after, on the run's own evaluation text."""
    if report is None:
        return None
    before, after = judged(parse_wish("perplexity=1x"), report)
    return None if before is None or after is None else {"before": float(before), "after": float(after)}


def limited_by(wishes: Sequence[WishFacts]) -> str:
    """In words: what keeps the result from being better."""
    if not wishes:
        return "nothing: this is the front of what can be had"
    broken = [wish["wish"] for wish in wishes if wish["held"] is False]
    if broken:
        return f"{' and '.join(broken)}: not held"
    near = [w["wish"] for w in wishes if w["got"] is not None and abs(w["got"] - w["limit"]) <= NEAR * w["limit"]]
    return f"{' and '.join(near)}: what goes is as little as that allows" if near else "how coarse the pieces are"
