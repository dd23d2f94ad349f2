"""Which layers and sub-blocks go whole: decided before the walk, by what the model loses without each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from secateur.calibration.layer_scores import ModelPart, leave_out, scores_of_layers
from secateur.model.sites import sites_of
from secateur.pipeline.run import Run
from secateur.system import distributed


def choose_layers(run: Run, work: Path) -> tuple[int, ...]:
    """The layers that stay: all, those of the plan, or those that the layer method keeps."""
    everything = tuple(range(run.checkpoint.layers))
    if run.rules.plan is not None:
        return run.rules.plan.layers
    count = run.rules.layers_to_drop
    if not count:
        return everything
    noted = distributed.share_object(run.journal.noted("layers") if run.journal is not None else None, 0)
    if noted is not None:
        run.layer_scores = {int(i): s for i, s in noted["scores"].items()}
        return tuple(noted["kept"])
    gone, run.layer_scores = _weakest_layers(run, count, work)
    kept = tuple(i for i in everything if i not in gone)
    if run.journal is not None:
        run.journal.note("layers", {"kept": kept, "scores": run.layer_scores})
    return kept


def choose_sub_blocks(run: Run, work: Path) -> None:
    """Adds to the rules which attention and FFN sub-blocks go from the layers that stay.

    Kinds are chosen one after the other, each with what went before it left out.
    """
    if run.rules.plan is not None:
        run.rules = replace(run.rules, dropped=run.rules.plan.dropped)
        return
    if not any(run.rules.sub_blocks.values()):
        return
    noted = distributed.share_object(run.journal.noted("sub-blocks") if run.journal is not None else None, 0)
    if noted is None:
        noted = _weakest_sub_blocks(run, work)
        if run.journal is not None:
            run.journal.note("sub-blocks", noted)
    run.sub_block_scores = {(int(index), kind): loss for index, kind, loss in noted["losses"]}
    run.rules = replace(run.rules, dropped=frozenset((int(index), kind) for index, kind in noted["dropped"]))


def _weakest_layers(run: Run, count: int, work: Path) -> tuple[frozenset[int], dict[int, float]]:
    """The layers to drop, and the score of every layer."""
    allowed = [i for i in range(run.checkpoint.layers) if i not in run.rules.protected]
    tokens = run.calibration.tokens
    measure = run.recipe.method_for("layer").score_layers
    if measure is not None and measure != "leave_one_out":
        with run.monitor.stage("choose layers", run.checkpoint.layers) as step:
            scores = scores_of_layers(measure, run.streamed, tokens, step)
        return frozenset(sorted(allowed, key=lambda i: (scores[i], i))[:count]), dict(enumerate(scores))
    with run.monitor.stage("choose layers") as step:
        parts = [(i, "layer") for i in allowed]
        gone, losses = leave_out(run.streamed, tokens, count, parts, step, run.budget(), work)
    return frozenset(i for i, _ in gone), {i: loss for (i, _), loss in losses.items()}


def _weakest_sub_blocks(run: Run, work: Path) -> dict[str, Any]:
    """`dropped`: (layer, kind) of the sub-blocks to drop; `losses`: (layer, kind, loss) of every one, without it."""
    gone = frozenset((i, "layer") for i in range(run.checkpoint.layers) if i not in run.kept)
    chosen: frozenset[ModelPart] = frozenset()
    losses: dict[ModelPart, float] = {}
    with run.monitor.stage("choose sub-blocks") as step:
        for kind, count in run.rules.sub_blocks.items():
            parts = [(i, kind) for i in run.kept if i not in run.rules.protected and _has(run, i, kind)]
            text, before = run.calibration.tokens, gone | chosen
            found, own = leave_out(run.streamed, text, count, parts, step, run.budget(), work, before)
            chosen, losses = chosen | found, losses | own
    return {"dropped": [list(p) for p in sorted(chosen)], "losses": [[*p, loss] for p, loss in losses.items()]}


def _has(run: Run, layer: int, kind: str) -> bool:
    """Whether a layer still has this sub-block."""
    checkpoint = run.checkpoint
    sites = sites_of(run.streamed.template(layer), checkpoint.family, layer, checkpoint.head_dim)
    return any(site.kind == kind for site in sites)
