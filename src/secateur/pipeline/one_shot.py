"""One pass over the model: choose, cut block by block, save, prove, train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.allocation.allocate import allocate, apply
from secateur.allocation.job import Job, key_of
from secateur.calibration.gradients import WHOLE, LayerGradients, gradients_of_model
from secateur.calibration.loss_weights import LossWeights, loss_weights, why_not
from secateur.calibration.stream import Stream, batches_of, of_sequences
from secateur.calibration.walk import walk
from secateur.cut.block import BlockCuts, cut_block
from secateur.cut.rules import Rules
from secateur.errors import InputError, VerificationError
from secateur.model.result_config import new_config
from secateur.model.round_trip import verify, write_probe
from secateur.model.save import fill, read_block, write_checkpoint
from secateur.model.site_kinds import SUB_BLOCKS
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import drop, update_heads
from secateur.pipeline.depth import choose_layers, choose_sub_blocks
from secateur.pipeline.inputs import Inputs, Services
from secateur.pipeline.recovery import recover_stage
from secateur.pipeline.result import PassResult
from secateur.pipeline.store import Store
from secateur.report.schema.report import GateFacts, GateFindings
from secateur.system import distributed
from secateur.workspace.folder import REFUSED
from secateur.workspace.ownership import discard

PROBE = "probe.safetensors"


class Choice(NamedTuple):
    """What is decided before the walk: which layers stay, what goes of each, and why."""

    rules: Rules
    kept: tuple[int, ...]
    shares: Mapping[str, float]


def one_shot(inputs: Inputs, services: Services) -> PassResult:
    """Cuts a checkpoint as its recipe and rules say, into a checkpoint in the store's area."""
    kept, layer_scores = choose_layers(inputs, services)
    dropped, sub_block_scores = choose_sub_blocks(inputs, services, kept)
    choice = Choice(replace(inputs.rules, dropped=dropped), kept, {})
    gradients = gather_gradients(inputs, services)
    weights, unweighed = weigh_errors(inputs, services, choice.rules)
    choice = allocate_sparsity(inputs, services, choice, gradients)
    blocks, lost = cut_blocks(inputs, services, choice, gradients, weights)
    warnings = (*unweighed, *lost, *_uncompiled(blocks))
    result = PassResult(
        choice.rules, choice.kept, blocks, choice.shares, layer_scores, sub_block_scores, warnings=warnings
    )
    if inputs.dry_run:
        return result
    result = replace(result, gate=distributed.on_first(lambda: save(inputs, services, result)))
    return recover_stage(inputs, services, result) if inputs.recipe.recover is not None else result


def gather_gradients(inputs: Inputs, services: Services) -> LayerGradients | None:
    """The gradients of the whole model's loss, where a method looks at them."""
    if not inputs.rules.gradient_needs & WHOLE:
        return None
    tokens = inputs.calibration.tokens
    with services.monitor.stage("gradients", len(tokens)) as step:
        counts = inputs.calibration.counts
        return gradients_of_model(inputs.streamed, tokens, inputs.rules.gradient_needs, step, counts)


def weigh_errors(inputs: Inputs, services: Services, rules: Rules) -> tuple[LossWeights | None, tuple[str, ...]]:
    """What errors of the layers' outputs cost the predictions, where blocks are tuned by that; and a warning.

    Raises:
        InputError: it was asked for, and this model's loss can't be looked at. A preset goes without it.
    """
    if inputs.config.objective != "loss" or not rules.needs_dense:
        return None, ()
    reason = distributed.from_first(lambda: why_not(inputs.streamed))
    if reason is not None and inputs.recipe.objective is not None:
        raise InputError(f"objective loss: {reason}; use --objective output")
    if reason is not None:
        return None, (f"blocks were tuned by the error of their output alone: {reason}",)
    batches = batches_of(inputs.calibration.tokens)
    counts = None if inputs.calibration.counts is None else batches_of(inputs.calibration.counts)
    with services.monitor.stage("weigh errors", len(batches)) as step:
        return loss_weights(inputs.streamed, batches, inputs.config.seed, step, counts), ()


def allocate_sparsity(inputs: Inputs, services: Services, choice: Choice, gradients: LayerGradients | None) -> Choice:
    """Spreads the sparsity over the layers, as the recipe says. A search may find that other layers should go."""
    config, store = inputs.config, services.store
    if config.allocate == "local" or choice.rules.plan is not None:
        return choice

    def reached(where: Any) -> None:
        if not inputs.dry_run:  # which leaves nothing to go on from
            store.progress("search", where)

    def spread() -> dict[str, float]:
        parts = None if config.allocate == "evolve" else len(choice.kept)  # a search ends when it ends
        with services.monitor.stage("allocate", parts) as step:
            about = (config, choice.rules, inputs.streamed, inputs.calibration.tokens, choice.kept)
            known = store.known("search")
            where = (services.memory, services.scratch)
            return allocate(Job(*about, gradients, step, *where, known, reached, inputs.calibration.counts))

    found = store.decide("allocation", spread)
    everything = range(inputs.checkpoint.layers)
    gone = {i for i in everything if found.get(key_of(i, "layer"))}
    kept = tuple(i for i in everything if i not in gone) if gone else choice.kept
    shares = {key: share for key, share in found.items() if not key.endswith(".layer")}
    return Choice(apply(choice.rules, shares, config), kept, shares)


def cut_blocks(
    inputs: Inputs,
    services: Services,
    choice: Choice,
    gradients: LayerGradients | None,
    weights: LossWeights | None,
) -> tuple[tuple[BlockCuts, ...], list[str]]:
    """Walks through the model once and cuts each block, which the next one then sees; and what was lost of those
    that an interrupted run had finished."""
    streamed, store, saves = inputs.streamed, services.store, not inputs.dry_run
    done: list[BlockCuts] = []
    warnings: list[str] = []

    def finished(index: int) -> nn.Module | None:
        cuts, lost = store.finished_block(index)
        if lost:
            warnings.append(f"layer {index} was pruned again: its file in the work area was lost or damaged")
        if cuts is None:
            return None
        layer = layer_of(streamed, cuts, store.read_block(index, streamed.device))
        done.append(cuts)
        step(f"layer {index}, done before", skipped=True)
        return layer

    def edited(layer: nn.Module, index: int) -> None:
        if saves:
            store.keep_block(layer, inputs.checkpoint, done[-1])

    def at_end(stream: Stream) -> None:
        if saves:
            distributed.on_first(lambda: probe(inputs, store, done, stream))

    # One sequence always goes along: what the model in memory makes of it is what the saved one is held against.
    tokens = inputs.calibration.tokens if choice.rules.needs_inputs else inputs.calibration.tokens[:1]
    with services.monitor.stage("prune", len(choice.kept)) as step:
        for block in walk(
            streamed,
            tokens,
            dense=choice.rules.needs_dense,
            layers=choice.kept,
            budget=services.memory,
            work=services.scratch,
            finished=finished,
            edited=edited,
            at_end=at_end,
        ):
            done.append(cut_block(block, choice.rules, services.memory, gradients, weights))
            step(f"layer {block.index}")
            del block  # its layer, before the next one is read
    return tuple(done), warnings


def _uncompiled(blocks: Sequence[BlockCuts]) -> list[str]:
    """A line for each reason why blocks that should have been compiled weren't."""
    layers: dict[str, list[str]] = {}
    for block in blocks:
        if block.tuned is not None and block.tuned.eager is not None:
            layers.setdefault(block.tuned.eager, []).append(str(block.index))
    return [f"tuned without torch.compile: layers {', '.join(own)}: {why}" for why, own in layers.items()]


def layer_of(streamed: StreamedModel, cuts: BlockCuts, tensors: dict[str, Tensor]) -> nn.Module:
    """The layer of a finished block, with the block's tensors."""
    layer = streamed.template(cuts.index)
    for site in (cut.site for cut in cuts.units if cut.site.kind in SUB_BLOCKS):
        drop(layer, site, streamed.checkpoint.family)
    layer = fill(layer, tensors, streamed.dtype).to(streamed.device)
    update_heads(layer, streamed.checkpoint.family, streamed.checkpoint.head_dim)
    if "heads" in cuts.widths:
        layer.secateur_heads = cuts.widths["heads"]
    return layer


def probe(inputs: Inputs, store: Store, done: Sequence[BlockCuts], stream: Stream) -> None:
    """Remembers what the model in memory computes, for the round-trip gate, which compares in fp32."""
    ids, streamed = stream.batches[0][:1], inputs.streamed
    if streamed.dtype == torch.float32:
        logits = streamed.logits(ids, of_sequences(stream.states[0], stream.batches[0].shape, slice(0, 1)))
    else:
        logits = logits_in_fp32(inputs, store, done, ids)
    write_probe(store.area.work / PROBE, ids, logits)


@torch.no_grad()
def logits_in_fp32(inputs: Inputs, store: Store, done: Sequence[BlockCuts], ids: Tensor) -> Tensor:
    """What the finished blocks compute on a CPU in fp32, for runs that compute in less.

    Args:
        ids: token ids (1, tokens).

    Returns: (1, tokens, vocabulary).
    """
    streamed = StreamedModel(inputs.checkpoint, torch.device("cpu"), torch.float32)
    hidden, calls = streamed.embed(ids)
    streamed.release()
    for cuts in done:
        hidden = calls[cuts.index](layer_of(streamed, cuts, read_block(store.area.blocks, cuts.index)), hidden)
    return streamed.logits(ids, hidden)


def save(inputs: Inputs, services: Services, result: PassResult) -> GateFacts:
    """Writes the checkpoint and proves it in a fresh process."""
    area, monitor = services.store.area, services.monitor
    with monitor.stage("save"):
        flags = tuple(result.rules.bias_flags.values())
        config = new_config(inputs.checkpoint, result.kept, result.widths, flags)
        write_checkpoint(area.final, inputs.streamed, area.blocks, result.kept, config)
    inputs.streamed.release()
    with monitor.stage("verify"):
        gate = _verified(area.final, area.work / PROBE, inputs.config.memory, inputs.checkpoint.path)
    return {**gate, "seconds": monitor.stages[-1].seconds}


def _verified(folder: Path, probe: Path, bound: int | None, source: Path) -> GateFindings:
    """The gate's findings. What it refuses is kept beside the work area's `final`, which is emptied.

    Raises:
        VerificationError: with where it is.
    """
    try:
        return verify(folder, probe, bound, source)
    except VerificationError as error:
        refused = folder.parent / REFUSED
        discard(refused)
        folder.rename(refused)
        folder.mkdir()
        raise VerificationError(f"{error}; the checkpoint is kept in {refused}") from None
