"""One pass over the model: choose, cut block by block, save, prove, train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from secateur.allocation.allocate import allocate, apply
from secateur.allocation.job import Job, key_of
from secateur.calibration.gradients import WHOLE, LayerGradients, gradients_of_model
from secateur.calibration.loss_weights import LossWeights, loss_weights, why_not
from secateur.calibration.stream import Stream, batches_of
from secateur.calibration.walk import walk
from secateur.cut.block import cut_block
from secateur.errors import InputError
from secateur.model.result_config import new_config
from secateur.model.round_trip import verify, write_probe
from secateur.model.save import write_checkpoint
from secateur.pipeline.depth import choose_layers, choose_sub_blocks
from secateur.pipeline.recovery import recover_stage
from secateur.pipeline.run import Run, finished_block, keep_block, logits_in_fp32
from secateur.system import distributed
from secateur.workspace.folder import Area


def one_shot(run: Run, work: Path, area: Area | None, dry_run: bool = False) -> dict[str, Any] | None:
    """Cuts the run's checkpoint as its recipe and rules say, into a checkpoint in `area`.

    Args:
        work: where this rank's hidden states may spill.
        area: of the first rank, None on others.
        dry_run: cut, and save nothing.

    Returns: what the round-trip gate found; None where nothing was saved.
    """
    run.kept = choose_layers(run, work)
    choose_sub_blocks(run, work)
    cut_blocks(run, work, None if dry_run else area)
    gate = save(run, area) if area is not None and not dry_run else None
    if run.recipe.recover is not None and not dry_run:
        run.recovered, gate = recover_stage(run, run.recipe.recover, area)
    return gate


def cut_blocks(run: Run, work: Path, area: Area | None) -> None:
    """Walks through the model once and cuts each block, which the next one then sees."""
    budget = run.budget()
    gradients, weights = gather_gradients(run), weigh_errors(run)
    allocate_sparsity(run, gradients, work, area)
    with run.monitor.stage("prune", len(run.kept)) as step:
        blocks = walk(
            run.streamed,
            run.calibration.tokens,
            layers=run.kept,
            dense=run.rules.needs_dense,
            budget=budget,
            work=work,
            finished=lambda index: finished_block(run, index, area, step),
            edited=lambda layer, index: keep_block(run, layer, index, area),
            at_end=lambda stream: _probe(run, stream, area),
        )
        for block in blocks:
            run.blocks.append(cut_block(block, run.rules, budget, gradients, weights))
            step(f"layer {block.index}")
            del block  # its layer, before the next one is read


def _search(run: Run, area: Area | None) -> tuple[Any, Callable[[Any], None]]:
    """Where an interrupted search for an allocation had got to, on every rank; and how to note where one is."""
    before = run.journal.noted("search") if run.journal is not None else None

    def note(reached: Any) -> None:
        if run.journal is not None and area is not None:
            run.journal.note("search", reached)
            area.worth_keeping()

    return distributed.share_object(before, 0), note


def allocate_sparsity(run: Run, gradients: LayerGradients | None, work: Path, area: Area | None) -> None:
    """Spreads the sparsity over the layers, as the recipe says; from the journal where that was done before.

    A search may find that other layers should go whole.
    """
    if run.recipe.allocate == "local" or run.rules.plan is not None:
        return
    shares = distributed.share_object(run.journal.noted("allocation") if run.journal is not None else None, 0)
    if shares is None:
        parts = None if run.recipe.allocate == "evolve" else len(run.kept)  # a search ends when it ends
        with run.monitor.stage("allocate", parts) as step:
            how = (gradients, step, run.budget(), work, *_search(run, area))
            shares = allocate(Job(run.recipe, run.rules, run.streamed, run.calibration.tokens, run.kept, *how))
        shares = distributed.share_object(shares, 0)
        if run.journal is not None:
            run.journal.note("allocation", shares)
    gone = {i for i in range(run.checkpoint.layers) if shares.get(key_of(i, "layer"))}
    run.kept = tuple(i for i in range(run.checkpoint.layers) if i not in gone) if gone else run.kept
    run.shares = {key: share for key, share in shares.items() if not key.endswith(".layer")}
    run.rules = apply(run.rules, run.shares, run.recipe)


def gather_gradients(run: Run) -> LayerGradients | None:
    """The gradients of the whole model's loss, where a method looks at them."""
    if not run.rules.gradient_needs & WHOLE:
        return None
    with run.monitor.stage("gradients", len(run.calibration.tokens)) as step:
        return gradients_of_model(run.streamed, run.calibration.tokens, run.rules.gradient_needs, step)


def weigh_errors(run: Run) -> LossWeights | None:
    """What errors of the layers' outputs cost the predictions, where blocks are tuned by that.

    Raises:
        InputError: it was asked for, and this model's loss can't be looked at. A preset goes without it.
    """
    if run.recipe.chosen_objective != "loss" or not run.rules.needs_dense:
        return None
    reason = distributed.share_object(why_not(run.streamed), 0)
    if reason is not None and run.recipe.objective is not None:
        raise InputError(f"objective loss: {reason}; use --objective output")
    if reason is not None:
        run.warnings.append(f"blocks were tuned by the error of their output alone: {reason}")
        return None
    batches = batches_of(run.calibration.tokens)
    with run.monitor.stage("weigh errors", len(batches)) as step:
        return loss_weights(run.streamed, batches, run.recipe.seed, step)


def _probe(run: Run, stream: Stream, area: Area | None) -> None:
    """Remembers what the model in memory computes, for the round-trip gate, which compares in fp32."""
    if area is None:
        return
    ids = stream.batches[0][:1]
    if run.streamed.dtype == torch.float32:
        logits = run.streamed.logits(ids, stream.states[0][:1])
    else:
        logits = logits_in_fp32(run, ids, area)
    write_probe(area.work / "probe.safetensors", ids, logits)


def save(run: Run, area: Area) -> dict[str, Any]:
    """Writes the checkpoint and proves it in a fresh process."""
    with run.monitor.stage("save"):
        config = new_config(run.checkpoint, run.kept, run.widths, tuple(run.rules.bias_flags.values()))
        write_checkpoint(area.final, run.streamed, area.blocks, run.kept, config)
    run.streamed.release()
    with run.monitor.stage("verify"):
        gate = verify(area.final, area.work / "probe.safetensors", run.recipe.memory_bytes)
    return gate | {"seconds": run.monitor.stages[-1].seconds}
