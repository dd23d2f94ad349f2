"""The whole run, top to bottom: open, calibrate, choose, cut block by block, save, verify, evaluate, report.

`prune` is what the command line calls. Each step is a function of what the steps before it returned; the
only state is in the output folder's work area.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from secateur import distributed
from secateur.api import new_config
from secateur.calibration.gradients import WHOLE, LayerGradients, check_gradients, gradients_of_model
from secateur.calibration.loss_weights import LossWeights, loss_weights, why_not
from secateur.calibration.stream import Stream, batches_of
from secateur.calibration.walk import walk
from secateur.choice import choose_layers, choose_sub_blocks
from secateur.cut.allocate import Job, allocate, apply
from secateur.cut.block import cut_block
from secateur.cut.rules import Rules
from secateur.data.batches import Calibration
from secateur.data.documents import load_corpus
from secateur.data.mixture import calibration_of
from secateur.errors import InputError, ResourceError
from secateur.evaluation.compute import dtype_name, resolve_device, resolve_dtype
from secateur.evaluation.evaluation import split_specs
from secateur.evaluation.own_text import SELF, own_calibration
from secateur.model.checkpoint import Checkpoint
from secateur.model.hub import local_folder
from secateur.model.outer import Outer
from secateur.model.save import write_checkpoint
from secateur.model.verify import verify, write_probe
from secateur.plan import SUB_BLOCKS, Plan
from secateur.progress import Monitor
from secateur.recipe import Recipe
from secateur.recovery.stage import check_stage, planned_recovery, recover_stage
from secateur.run import Run, begin, finished_block, keep_block, logits_in_fp32
from secateur.summary import finish, make_evidence, make_plan, write_outputs
from secateur.workspace import Workspace


def prune(
    recipe: Recipe,
    out: str | Path,
    *,
    plan: Plan | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Prunes a checkpoint into the folder `out`.

    Under torchrun every rank calls this; rank 0 writes.

    Args:
        plan: replay this plan instead of choosing; the recipe's sites and sparsity then don't matter.
        dry_run: choose and forecast, but save no model: `out` gets plan.json and report.json only.
        overwrite: an earlier result in `out` may be replaced.
        resume: go on with the interrupted run in `out`; it must have been told the same.
        quiet: no progress display.

    Returns:
        The report, as in report.json; empty on ranks other than 0.

    Raises:
        SecateurError: in one line. `out` is then as it was before, or holds what `resume` goes on from.
    """
    device = distributed.own_device(resolve_device(recipe.device))
    with distributed.group(device), ExitStack() as stack:
        with distributed.in_step():
            workspace = Workspace(out, overwrite, resume) if distributed.is_main() else None
            monitor = Monitor(device, quiet or workspace is None, planned_stages(recipe, plan, dry_run))
            stack.callback(monitor.close)
            run = prepare(recipe, plan, device, monitor)
            if workspace is not None:
                _check_room(run, workspace)
                stack.enter_context(workspace.open())
                begin(run, workspace)
        work = stack.enter_context(_scratch(workspace))
        run.kept = choose_layers(run, work)
        choose_sub_blocks(run, work)
        cut_blocks(run, work, None if dry_run else workspace)
        gate = save(run, workspace) if workspace is not None and not dry_run else None
        if recipe.recover is not None and not dry_run:
            run.recovered, gate = recover_stage(run, recipe.recover, workspace)
        if workspace is None:
            return {}
        made = make_plan(run)
        report = finish(run, made, gate, workspace, dry_run)
        write_outputs(report, made, recipe, workspace, make_evidence(run))
        workspace.deliver()
        return report


def planned_stages(recipe: Recipe, plan: Plan | None, dry_run: bool) -> list[str]:
    """Names of the stages that such a run goes through."""
    names = ["calibration text", "open"]
    if "layer" in recipe.sites and plan is None:
        names.append("choose layers")
    if set(SUB_BLOCKS) & set(recipe.sites) and plan is None:
        names.append("choose sub-blocks")
    if any(gradient_method(recipe, kind) for kind in recipe.sites):
        names.append("gradients")
    if recipe.chosen_objective == "loss":
        names.append("weigh errors")
    if recipe.allocate != "local" and plan is None:
        names.append("allocate")
    names.append("prune")
    if not dry_run:
        names += ["save", "verify"]
        names += planned_recovery(recipe.recover) if recipe.recover is not None else []
        names += [] if recipe.evaluate == "none" else ["evaluate"]
    return names


def gradient_method(recipe: Recipe, kind: str) -> bool:
    """Whether the method for this kind of site looks at the whole model's loss."""
    return bool(recipe.method_for(kind).loss & WHOLE)


@contextmanager
def _scratch(workspace: Workspace | None) -> Iterator[Path]:
    """Where this rank's hidden states may spill: in the work area if it sees that, else where `TMPDIR` says."""
    shared = distributed.share_object(str(workspace.work.absolute()) if workspace is not None else "", 0)
    if workspace is not None:
        yield workspace.work
        return
    area = shared if Path(shared).is_dir() else None
    with tempfile.TemporaryDirectory(prefix="secateur-", dir=area, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def prepare(recipe: Recipe, plan: Plan | None, device: torch.device, monitor: Monitor) -> Run:
    """Opens everything that the run reads and refuses what can't work, before anything is written."""
    checkpoint = Checkpoint.open(local_folder(recipe.model))
    if plan is not None:
        plan.check(checkpoint.config.model_type, checkpoint.layers)
    rules = Rules.of(recipe, checkpoint, plan)
    check_stage(recipe, checkpoint)
    with monitor.stage("calibration text"):
        calibration = _calibration(recipe, checkpoint)
        if recipe.evaluate not in (None, "none"):
            # Read now, so that a run doesn't find out at its end that there's nothing to evaluate on.
            for spec in split_specs(recipe.evaluate):
                load_corpus(spec, split="held_out")
    dtype = resolve_dtype(recipe.dtype, device, checkpoint.config)
    with monitor.stage("open"):
        outer = Outer(checkpoint, device, dtype)
    check_gradients(outer, rules.loss)
    run = Run(recipe, checkpoint, calibration, outer, rules, monitor)
    run.warnings += [*calibration.notes, *rules.notes]
    if torch.finfo(dtype).eps > torch.finfo(checkpoint.dtype).eps:
        run.warnings.append(f"the layers' weights are rounded to {dtype_name(dtype)}, in which the run computes")
    return run


def _check_room(run: Run, workspace: Workspace) -> None:
    """The work area and the result need about the checkpoint's size each, hidden states what is over the budget."""
    folder = next(p for p in (workspace.out, *workspace.out.absolute().parents) if p.exists())
    # The pruned model's, the untouched model's, and a block's targets.
    streams = 1 + run.rules.needs_dense + (run.rules.tuning is not None)
    hidden = streams * run.calibration.tokens.numel() * run.checkpoint.config.hidden_size * run.outer.dtype.itemsize
    need = 2 * run.checkpoint.bytes_on_disk + max(0, hidden - (run.budget().left or 0))
    free = shutil.disk_usage(folder).free + workspace.finished_bytes
    if free < need:
        raise ResourceError(
            f"{workspace.out}: the disk has {free / 1e9:.1f} GB free, the run needs about {need / 1e9:.1f} GB; "
            "free some space or choose another --out"
        )


def _calibration(recipe: Recipe, checkpoint: Checkpoint) -> Calibration:
    context = getattr(checkpoint.config, "max_position_embeddings", None)
    if context is not None and recipe.length > context:
        raise InputError(f"--length {recipe.length} is more than the model's context; use --length {context} or less")
    if recipe.calibrate == SELF:
        return own_calibration(checkpoint.path, recipe.samples, recipe.length, recipe.seed, recipe.device)
    return calibration_of(
        recipe.calibrate,
        checkpoint.tokenizer,
        recipe.samples,
        recipe.length,
        recipe.seed,
        checkpoint.config.vocab_size,
    )


def cut_blocks(run: Run, work: Path, workspace: Workspace | None) -> None:
    """Walks through the model once and cuts each block, which the next one then sees."""
    budget = run.budget()
    gradients, weights = gather_gradients(run), weigh_errors(run)
    allocate_sparsity(run, gradients, work)
    with run.monitor.stage("prune", len(run.kept)) as step:
        blocks = walk(
            run.outer,
            run.calibration.tokens,
            layers=run.kept,
            dense=run.rules.needs_dense,
            budget=budget,
            work=work,
            finished=lambda index: finished_block(run, index, workspace, step),
            edited=lambda layer, index: keep_block(run, layer, index, workspace),
            at_end=lambda stream: _probe(run, stream, workspace),
        )
        for block in blocks:
            run.blocks.append(cut_block(block, run.rules, budget, gradients, weights))
            step(f"layer {block.index}")
            del block  # its layer, before the next one is read


def allocate_sparsity(run: Run, gradients: LayerGradients | None, work: Path) -> None:
    """Spreads the sparsity over the layers, as the recipe says; from the journal where that was done before."""
    if run.recipe.allocate == "local" or run.rules.plan is not None:
        return
    shares = distributed.share_object(run.journal.noted("allocation") if run.journal is not None else None, 0)
    if shares is None:
        with run.monitor.stage("allocate", len(run.kept)) as step:
            where = (gradients, step, run.budget(), work)
            shares = allocate(Job(run.recipe, run.rules, run.outer, run.calibration.tokens, run.kept, *where))
        shares = distributed.share_object(shares, 0)
        if run.journal is not None:
            run.journal.note("allocation", shares)
    run.shares = shares
    run.rules = apply(run.rules, shares, run.recipe)


def gather_gradients(run: Run) -> LayerGradients | None:
    """The gradients of the whole model's loss, where a method looks at them."""
    if not run.rules.loss & WHOLE:
        return None
    with run.monitor.stage("gradients", len(run.calibration.tokens)) as step:
        return gradients_of_model(run.outer, run.calibration.tokens, run.rules.loss, step)


def weigh_errors(run: Run) -> LossWeights | None:
    """What errors of the layers' outputs cost the predictions, where blocks are tuned by that.

    Raises:
        InputError: it was asked for, and this model's loss can't be looked at. A preset goes without it.
    """
    if run.recipe.chosen_objective != "loss" or not run.rules.needs_dense:
        return None
    reason = distributed.share_object(why_not(run.outer), 0)
    if reason is not None and run.recipe.objective is not None:
        raise InputError(f"objective loss: {reason}; use --objective output")
    if reason is not None:
        run.warnings.append(f"blocks were tuned by the error of their output alone: {reason}")
        return None
    batches = batches_of(run.calibration.tokens)
    with run.monitor.stage("weigh errors", len(batches)) as step:
        return loss_weights(run.outer, batches, run.recipe.seed, step)


def _probe(run: Run, stream: Stream, workspace: Workspace | None) -> None:
    """Remembers what the model in memory computes, for the round-trip gate, which compares in fp32."""
    if workspace is None:
        return
    ids = stream.batches[0][:1]
    if run.outer.dtype == torch.float32:
        logits = run.outer.logits(ids, stream.states[0][:1])
    else:
        logits = logits_in_fp32(run, ids, workspace)
    write_probe(workspace.work / "probe.safetensors", ids, logits)


def save(run: Run, workspace: Workspace) -> dict[str, Any]:
    """Writes the checkpoint and proves it in a fresh process."""
    with run.monitor.stage("save"):
        config = new_config(run.checkpoint, run.kept, run.widths, tuple(run.rules.bias_flags.values()))
        write_checkpoint(workspace.final, run.outer, workspace.blocks, run.kept, config)
    run.outer.release()
    with run.monitor.stage("verify"):
        gate = verify(workspace.final, workspace.work / "probe.safetensors", run.recipe.memory_bytes)
    return gate | {"seconds": run.monitor.stages[-1].seconds}
