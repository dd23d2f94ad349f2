"""The whole run, top to bottom: open, calibrate, choose, cut block by block, save, verify, evaluate, report.

`prune` is what the command line calls. Each step is a function of what the steps before it returned; the
only state is in the output folder's work area.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.api import new_config
from secateur.calibration.activations import Budget
from secateur.calibration.depth import influence_of_layers, leave_out
from secateur.calibration.walk import Block, Stream, walk
from secateur.cut.rules import Rules
from secateur.cut.units import UnitCut, cut_units
from secateur.cut.weights import WeightCut, cut_weights
from secateur.data.batches import Calibration, calibration_batches
from secateur.data.documents import load_corpus
from secateur.errors import InputError
from secateur.evaluation.compute import resolve_device, resolve_dtype
from secateur.model.biases import add_biases
from secateur.model.checkpoint import Checkpoint
from secateur.model.hub import local_folder
from secateur.model.outer import Outer
from secateur.model.save import write_block, write_checkpoint
from secateur.model.uneven import Widths, layer_widths
from secateur.model.verify import verify, write_probe
from secateur.plan import Plan
from secateur.progress import Monitor
from secateur.recipe import Recipe
from secateur.summary import finish, make_plan, write_outputs
from secateur.units import parse_bytes
from secateur.workspace import Workspace


@dataclass
class Run:
    """What a run knows, filled in from top to bottom."""

    recipe: Recipe
    checkpoint: Checkpoint
    calibration: Calibration
    outer: Outer
    rules: Rules
    monitor: Monitor
    kept: tuple[int, ...] = ()
    layer_scores: dict[int, float] = field(default_factory=dict)
    unit_cuts: list[UnitCut] = field(default_factory=list)
    weight_cuts: list[tuple[int, WeightCut]] = field(default_factory=list)
    widths: dict[int, Widths] = field(default_factory=dict)
    added_parameters: int = 0
    warnings: list[str] = field(default_factory=list)


def prune(
    recipe: Recipe,
    out: str | Path,
    *,
    plan: Plan | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Prunes a checkpoint into the folder `out`.

    Args:
        plan: replay this plan instead of choosing; the recipe's sites and sparsity then don't matter.
        dry_run: choose and forecast, but save no model: `out` gets plan.json and report.json only.
        overwrite: an earlier result in `out` may be replaced.
        quiet: no progress display.

    Returns:
        The report, as in report.json.

    Raises:
        SecateurError: in one line; `out` is then as it was before.
    """
    workspace = Workspace(out, overwrite)
    run = prepare(recipe, plan, quiet)
    try:
        with workspace.open():
            run.monitor.events = workspace.final / "events.jsonl"
            run.kept = choose_layers(run, workspace)
            cut_blocks(run, workspace, save=not dry_run)
            made = make_plan(run)
            gate = None if dry_run else save(run, workspace)
            report = finish(run, made, gate, workspace, dry_run)
            write_outputs(report, made, recipe, workspace.final)
            workspace.deliver()
    finally:
        run.monitor.close()
    return report


def prepare(recipe: Recipe, plan: Plan | None, quiet: bool) -> Run:
    """Opens everything that the run reads and refuses what can't work, before anything is written."""
    device = resolve_device(recipe.device)
    checkpoint = Checkpoint.open(local_folder(recipe.model))
    if plan is not None:
        plan.check(checkpoint.config.model_type, checkpoint.layers)
    rules = Rules.of(recipe, checkpoint, plan)
    monitor = Monitor(device, quiet)
    with monitor.stage("calibration text"):
        calibration = _calibration(recipe, checkpoint)
    dtype = resolve_dtype(recipe.dtype, device, checkpoint.config)
    with monitor.stage("open"):
        outer = Outer(checkpoint, device, dtype)
    run = Run(recipe, checkpoint, calibration, outer, rules, monitor)
    run.warnings += [*calibration.notes, *rules.notes]
    return run


def _calibration(recipe: Recipe, checkpoint: Checkpoint) -> Calibration:
    context = getattr(checkpoint.config, "max_position_embeddings", None)
    if context is not None and recipe.length > context:
        raise InputError(f"--length {recipe.length} is more than the model's context; use --length {context} or less")
    return calibration_batches(
        load_corpus(recipe.calibrate),
        checkpoint.tokenizer(),
        recipe.samples,
        recipe.length,
        recipe.seed,
        vocab_size=checkpoint.config.vocab_size,
    )


def choose_layers(run: Run, workspace: Workspace) -> tuple[int, ...]:
    """The layers that stay: all, those of the plan, or those that the layer method keeps."""
    everything = tuple(range(run.checkpoint.layers))
    if run.rules.plan is not None:
        return run.rules.plan.layers
    count = run.rules.layers_to_drop
    if not count:
        return everything
    allowed = [i for i in everything if i not in run.rules.protected]
    tokens = run.calibration.tokens
    method = run.recipe.method_for("layer").score_layers
    if method == "block_influence":
        with run.monitor.stage("score layers", len(everything)) as step:
            scores = influence_of_layers(run.outer, tokens, step)
        run.layer_scores = dict(enumerate(scores))
        gone = frozenset(sorted(allowed, key=lambda i: (scores[i], i))[:count])
    else:
        with run.monitor.stage("leave layers out") as step:
            gone, run.layer_scores = leave_out(
                run.outer, tokens, count, allowed, step, _budget(run.recipe), workspace.work
            )
    return tuple(i for i in everything if i not in gone)


def cut_blocks(run: Run, workspace: Workspace, save: bool) -> None:
    """Walks through the model once and cuts each block, which the next one then sees."""
    checkpoint = run.checkpoint
    blocks = walk(
        run.outer,
        run.calibration.tokens,
        layers=run.kept,
        budget=_budget(run.recipe),
        work=workspace.work,
        edited=lambda layer, index: write_block(workspace.blocks, layer, checkpoint, index) if save else None,
        at_end=lambda stream: _probe(run, stream, workspace) if save else None,
    )
    with run.monitor.stage("prune", len(run.kept)) as step:
        for block in blocks:
            cut_block(run, block)
            position = len(run.widths)
            run.widths[position] = layer_widths(
                block.layer, checkpoint.family, checkpoint.config, checkpoint.head_dim
            )
            step(f"layer {block.index}")


def cut_block(run: Run, block: Block) -> None:
    """All cuts of one block: structured first, then single weights of what is left."""
    rules = run.rules
    if rules.bias_flags:
        run.added_parameters += add_biases(block.layer, run.checkpoint, rules.bias_flags)
    if block.index in rules.protected:
        return
    if rules.unit_kinds:
        run.unit_cuts += cut_units(block, rules.unit_kinds, rules.units)
    if rules.weight_method is not None:
        sparsity = rules.weight_sparsity(block.index)
        cuts = cut_weights(block, rules.weight_method, rules.pattern, sparsity, run.recipe.sequential)
        run.weight_cuts += [(block.index, cut) for cut in cuts]


def _probe(run: Run, stream: Stream, workspace: Workspace) -> None:
    """Remembers what the model in memory computes, for the round-trip gate."""
    ids = stream.batches[0][:1]
    logits = run.outer.logits(ids, stream.states[0][:1])
    write_probe(workspace.work / "probe.safetensors", ids, logits)


def save(run: Run, workspace: Workspace) -> dict[str, Any]:
    """Writes the checkpoint and proves it in a fresh process."""
    with run.monitor.stage("save"):
        config = new_config(run.checkpoint, run.kept, run.widths, tuple(run.rules.bias_flags.values()))
        write_checkpoint(workspace.final, run.outer, workspace.blocks, run.kept, config)
    with run.monitor.stage("verify"):
        gate = verify(workspace.final, workspace.work / "probe.safetensors")
    return gate | {"seconds": run.monitor.stages[-1].seconds}


def _budget(recipe: Recipe) -> Budget:
    return Budget(parse_bytes(recipe.memory) if recipe.memory else None)
