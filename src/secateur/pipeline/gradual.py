"""Several passes, each over what the one before has left, told as one run: gradual cuts, fewer hidden dimensions.

Every pass but the last works in a folder of its own in the work area, and its checkpoint is what the next one opens.
What a pass has to reproduce is the model that it begins with: a recovery in between has brought that to its best.
Whatever is counted and told is of the original model (`lineage`).
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from secateur.allocation.job import key_of
from secateur.config.plan import SUB_BLOCKS
from secateur.config.recipe import Recipe
from secateur.cut.counts import keep_counts, whole_parts
from secateur.cut.rules import Rules
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.pipeline.hidden import narrow_model
from secateur.pipeline.lineage import Lineage
from secateur.pipeline.one_shot import one_shot
from secateur.pipeline.results.before_after import perplexities
from secateur.pipeline.results.report import parameters_of
from secateur.pipeline.run import Run, fingerprint
from secateur.pipeline.schedule import PruningStep, pruning_steps
from secateur.system import distributed
from secateur.workspace.folder import Area, Workspace
from secateur.workspace.journal import Journal

DONE = "step finished"
TOGETHER = ({"kv_group", "query_head"}, {"expert", "channel"})  # cutting one renumbers the other


def check_steps(recipe: Recipe, planned: bool, dry_run: bool) -> None:
    """Refuses what can't go step by step.

    Raises:
        InputError: in one line.
    """
    if recipe.steps == 1:
        return
    if planned:
        raise InputError("a plan says what goes in the end, not in what steps; leave out --steps")
    if dry_run:
        raise InputError("what a step takes depends on the steps before it; leave out --dry-run or --steps")
    for kinds in TOGETHER:
        if kinds <= set(recipe.sites):
            both = " and ".join(sorted(kinds))
            raise InputError(f"sites {both} can't both go step by step; prune one, then the result for the other")


def in_steps(whole: Run, work: Path, workspace: Workspace | None) -> dict[str, Any] | None:
    """Carries out a recipe of several steps; afterwards `whole` tells of the original model and what is left of it.

    Args:
        work: where this rank's hidden states may spill.
        workspace: of the first rank.

    Returns: what the round-trip gate found of the last checkpoint; None on ranks other than 0.
    """
    folder, lineage, gate = whole.checkpoint.path, whole.lineage, None
    if "hidden" in whole.recipe.sites:
        whole.narrowed = narrow_model(whole, work, None if workspace is None else workspace.step(0))
        folder = whole.narrowed.checkpoint.path
    every = pruning_steps(whole.recipe)
    for stop in every:
        last = stop is every[-1]
        area = None if workspace is None else workspace if last else workspace.step(stop.number)
        journal = _journal(whole, stop, area)
        record = distributed.share_object(journal.noted(DONE) if journal is not None else None, 0)
        if record is None:
            whole.monitor.prefix = f"step {stop.number}, " if len(every) > 1 else ""
            run = _prepared(whole, stop, folder, lineage, journal)
            gate = one_shot(run, work, area)
            after = lineage.after(run.kept, run.blocks, run.layer_scores, run.sub_block_scores)
            _tell(whole, run, after)
            record = _record(whole, run, stop, None if last else area) | {"lineage": after.to_json()}
            if journal is not None and not last:
                journal.note(DONE, record)
        lineage = Lineage.from_json(record["lineage"])
        if whole.recipe.steps > 1:
            whole.steps.append({key: value for key, value in record.items() if key != "lineage"})
        if not last:
            folder = _next(folder, whole, area)
    whole.monitor.prefix = ""
    return gate


def _journal(whole: Run, stop: PruningStep, area: Area | None) -> Journal | None:
    """The journal of one step; without what an interrupted run has left half done beside it."""
    if area is None or isinstance(area, Workspace):  # the run's own, of its last step
        return whole.journal
    area.work.mkdir(parents=True, exist_ok=True)
    journal = Journal(area.work, fingerprint(whole, stop.number))
    journal.begin(area.resume)
    if journal.noted(DONE) is None:
        area.tidy(True)
        area.blocks.mkdir(exist_ok=True)
        area.final.mkdir()
    return journal


def _prepared(whole: Run, stop: PruningStep, folder: Path, lineage: Lineage, journal: Journal | None) -> Run:
    """One pass over the checkpoint in `folder`, after which as much of the original has gone as `stop` says."""
    checkpoint = Checkpoint.open(folder)
    recipe = stop.recipe.model_copy(update={"model": str(folder), "protect": ()})
    gone = Counter(kind for _, kind in lineage.dropped) + Counter({"layer": lineage.depth - len(lineage.layers)})
    wanted = {kind: max(0, whole_parts(recipe, kind, lineage.depth) - gone[kind]) for kind in ("layer", *SUB_BLOCKS)}
    rules = Rules.of(recipe, checkpoint, None, counted=False)
    rules = replace(
        rules,
        unit_kinds=whole.rules.unit_kinds,  # heads may have lost their groups on the way
        units=replace(rules.units, keep_count=keep_counts(recipe, lineage.units)),
        protected=frozenset(place for place, i in enumerate(lineage.layers) if i in whole.rules.protected),
        layers_to_drop=wanted.pop("layer"),
        sub_blocks=wanted,
    )
    streamed = StreamedModel(checkpoint, whole.streamed.device, whole.streamed.dtype)
    return Run(recipe, checkpoint, whole.calibration, streamed, rules, whole.monitor, journal, before=lineage)


def _tell(whole: Run, run: Run, lineage: Lineage) -> None:
    """Makes `whole` say what has become of the original model; `run` was the pass that came last."""
    places = {layer: place for place, layer in enumerate(lineage.layers)}
    before = run.lineage.layers

    def sparsity(layer: int) -> Any:
        return run.rules.weight_sparsity(run.kept[places[layer]])

    whole.kept = lineage.layers
    whole.blocks = [lineage.blocks[layer] for layer in lineage.layers]
    whole.layer_scores, whole.sub_block_scores = dict(lineage.layer_scores), dict(lineage.sub_block_scores)
    whole.rules = replace(whole.rules, dropped=lineage.dropped, weight_sparsity=sparsity)
    whole.recovered = run.recovered
    whole.warnings += [warning for warning in run.warnings if warning not in whole.warnings]
    if whole.recipe.allocate != "local":
        cuts = [cut for cut in whole.unit_cuts if cut.site.kind not in SUB_BLOCKS]
        units = {key_of(c.site.layer, c.site.kind): 1 - len(c.keep) / c.site.units for c in cuts}
        names = {key_of(place, ""): key_of(layer, "") for place, layer in enumerate(before)}
        weights = {_renamed(key, names): share for key, share in run.shares.items()}
        whole.shares = weights | units


def _renamed(key: str, names: dict[str, str]) -> str:
    """`layers.2.mlp.up_proj` as it was called in the original."""
    head = ".".join(key.split(".", 2)[:2]) + "."
    return names[head] + key.removeprefix(head)


def _record(whole: Run, run: Run, stop: PruningStep, area: Area | None) -> dict[str, Any]:
    """The report's line on a step; of the last one the perplexity is measured with everything else."""
    counts = parameters_of(whole)
    return {
        "step": stop.number,
        "share": stop.share,
        "parameters": counts["after"],
        "nonzero_parameters": counts["nonzero_after"],
        "perplexity": perplexities(run, area) if area is not None else {},
    }


def _kept(whole: Run) -> set[Path]:
    """Models that are there to the end: the original, and the narrow one, which a resumed run looks for."""
    return {whole.checkpoint.path, *([whole.narrowed.checkpoint.path] if whole.narrowed is not None else [])}


def _next(folder: Path, whole: Run, area: Area | None) -> Path:
    """The folder that the next step begins with; what no later step reads is removed."""
    if area is not None:
        shutil.rmtree(area.blocks, ignore_errors=True)
        if folder not in _kept(whole):
            shutil.rmtree(folder, ignore_errors=True)
    return Path(distributed.share_object(str(area.final.absolute()) if area is not None else "", 0))
