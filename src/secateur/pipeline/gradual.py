"""Several passes, each over what the one before has left, told as one run: gradual cuts, fewer hidden dimensions.

Every pass but the last works in a folder of its own in the work area, and its checkpoint is what the next one opens.
What a pass has to reproduce is the model that it begins with: a recovery in between has brought that to its best.
Whatever is counted and told is of the original model (`lineage`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict

from secateur.allocation.job import key_of
from secateur.config.configuration import resolve
from secateur.config.recipe import Recipe
from secateur.cut.counts import keep_counts, whole_parts
from secateur.cut.hidden import Narrowed
from secateur.cut.rules import Rules
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.site_kinds import KINDS, SUB_BLOCKS, WHOLE, units_of
from secateur.model.streamed import StreamedModel
from secateur.pipeline.hidden import narrow_model
from secateur.pipeline.inputs import Inputs, Services
from secateur.pipeline.lineage import Lineage
from secateur.pipeline.one_shot import one_shot
from secateur.pipeline.result import PassResult
from secateur.pipeline.results.before_after import perplexities
from secateur.pipeline.results.report import parameters_of
from secateur.pipeline.results.sites import sites_of_run
from secateur.pipeline.schedule import PruningStep, pruning_steps
from secateur.pipeline.store import DONE, Store
from secateur.report.schema.report import GradualStep
from secateur.system import distributed
from secateur.workspace.ownership import discard


class StepRecord(TypedDict):
    """What the journal keeps of a step."""

    row: GradualStep
    warnings: Sequence[str]
    lineage: Mapping[str, object]


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
    for part in SUB_BLOCKS:
        kinds = {kind for kind in units_of(part) & set(recipe.sites) if not KINDS[kind].normed}
        if len(kinds) > 1:  # cutting one renumbers the other, latents excepted
            both = " and ".join(sorted(kinds))
            raise InputError(f"sites {both} can't both go step by step; prune one, then the result for the other")


def in_steps(inputs: Inputs, services: Services) -> PassResult:
    """Carries out a recipe of several steps: what has become of the original model, and what is left of it."""
    folder, lineage, narrowed = inputs.checkpoint.path, inputs.lineage, None
    if "hidden" in inputs.recipe.sites:
        narrowed = narrow_model(inputs, services)
        folder = narrowed.checkpoint.path
    kept = {inputs.checkpoint.path, folder}  # to the end; a resumed run looks for the narrow one
    *earlier, last = pruning_steps(inputs.recipe)
    rows: list[GradualStep] = []
    warnings: tuple[str, ...] = ()
    for stop in earlier:
        own = replace(services, store=services.store.step(stop.number, inputs.fingerprint(stop.number)))
        own.store.begin()
        services.monitor.prefix = f"step {stop.number}, "
        record: StepRecord = own.store.decide(DONE, partial(_step, inputs, own, stop, folder, lineage, narrowed))
        rows.append(record["row"])
        lineage, warnings = Lineage.from_json(record["lineage"]), (*warnings, *record["warnings"])
        folder = _next(folder, kept, own.store)
    services.monitor.prefix = f"step {last.number}, " if earlier else ""
    before = pass_inputs(inputs, last, folder, lineage)
    result = composed(inputs, before, one_shot(before, services), narrowed)
    services.monitor.prefix = ""
    fingerprint = [*inputs.notes, *warnings, *result.warnings]
    fresh = tuple(w for i, w in enumerate(fingerprint) if w not in fingerprint[:i] and i >= len(inputs.notes))
    if inputs.recipe.steps > 1:
        rows.append(_row(inputs, result, last, {}))  # perplexity is measured with everything else
    return replace(result, warnings=fresh, steps=tuple(rows))


def _step(
    inputs: Inputs, services: Services, stop: PruningStep, folder: Path, lineage: Lineage, narrowed: Narrowed | None
) -> StepRecord:
    """One step but the last: its line in the report, its warnings, and what it leaves to the next one."""
    before = pass_inputs(inputs, stop, folder, lineage)
    own = one_shot(before, services)
    whole = composed(inputs, before, own, narrowed)
    found = distributed.on_first(lambda: perplexities(before, own, services))
    return {
        "row": _row(inputs, whole, stop, found or {}),
        "warnings": own.warnings,
        "lineage": after(before, own).to_json(),
    }


def pass_inputs(inputs: Inputs, stop: PruningStep, folder: Path, lineage: Lineage) -> Inputs:
    """Those of one pass over the checkpoint in `folder`, after which as much of the original has gone as `stop` says.

    Args:
        inputs: of the original.
    """
    checkpoint = Checkpoint.open(folder)
    recipe = stop.recipe.model_copy(update={"model": str(folder), "protect": ()})
    config = resolve(recipe)
    gone = Counter(kind for _, kind in lineage.dropped) + Counter({"layer": lineage.depth - len(lineage.layers)})
    wanted = {kind: max(0, whole_parts(config, kind, lineage.depth) - gone[kind]) for kind in WHOLE}
    streamed = StreamedModel(checkpoint, inputs.streamed.device, inputs.streamed.dtype)
    if inputs.rules.plan is not None:  # after the hidden dimensions: what a plan says is told of in no steps
        rules = Rules.from_plan(inputs.rules.plan, config, checkpoint)
        rules = replace(rules, protected=inputs.rules.protected)
        return Inputs(recipe, config, checkpoint, inputs.calibration, streamed, rules, lineage)
    rules = Rules.from_recipe(config, checkpoint, counted=False)
    rules = replace(
        rules,
        unit_kinds=inputs.rules.unit_kinds,  # heads may have lost their groups on the way
        units=replace(rules.units, keep_count=keep_counts(config, lineage.units)),
        protected=frozenset(place for place, i in enumerate(lineage.layers) if i in inputs.rules.protected),
        layers_to_drop=wanted.pop("layer"),
        sub_blocks=wanted,
    )
    return Inputs(recipe, config, checkpoint, inputs.calibration, streamed, rules, lineage)


def after(inputs: Inputs, result: PassResult) -> Lineage:
    """What has become of the original after one more pass."""
    return inputs.lineage.after(result.kept, result.blocks, result.layer_scores, result.sub_block_scores)


def composed(inputs: Inputs, before: Inputs, last: PassResult, narrowed: Narrowed | None) -> PassResult:
    """The result of all passes so far, by the numbers of the original.

    Args:
        before: what the last of them was given, with all that was done before it.
    """
    lineage, names = after(before, last), before.lineage.layers
    places = {layer: place for place, layer in enumerate(lineage.layers)}

    def sparsity(layer: int) -> Callable[[str], float]:
        return last.rules.weight_sparsity(last.kept[places[layer]])

    result = replace(
        last,
        rules=replace(inputs.rules, dropped=lineage.dropped, weight_sparsity=sparsity),
        kept=lineage.layers,
        blocks=tuple(lineage.blocks[layer] for layer in lineage.layers),
        layer_scores=lineage.layer_scores,
        sub_block_scores=lineage.sub_block_scores,
        narrowed=narrowed,
    )
    if inputs.recipe.allocate == "local":
        return result
    cuts = [cut for cut in result.unit_cuts if cut.site.kind not in SUB_BLOCKS]
    units = {key_of(c.site.layer, c.site.kind, c.site.label): 1 - len(c.keep) / c.site.units for c in cuts}
    original = {key_of(place, ""): key_of(layer, "") for place, layer in enumerate(names)}
    weights = {_renamed(key, original): share for key, share in last.shares.items()}
    return replace(result, shares=weights | units)


def _renamed(key: str, names: dict[str, str]) -> str:
    """`layers.2.mlp.up_proj` as it was called in the original."""
    head = ".".join(key.split(".", 2)[:2]) + "."
    return names[head] + key.removeprefix(head)


def _row(inputs: Inputs, whole: PassResult, stop: PruningStep, perplexity: dict[str, float]) -> GradualStep:
    """The report's line on a step."""
    counts = parameters_of(inputs, whole, sites_of_run(inputs, whole))
    return {
        "step": stop.number,
        "share": stop.share,
        "parameters": counts["after"],
        "nonzero_parameters": counts["nonzero_after"],
        "perplexity": perplexity,
    }


def _next(folder: Path, kept: set[Path], store: Store) -> Path:
    """The folder that the next step begins with; what no later step reads is removed."""

    def tidy() -> None:
        discard(store.area.blocks)
        if folder not in kept:
            discard(folder)

    distributed.on_first(tidy)
    return store.final
