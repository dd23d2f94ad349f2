"""Scores of whole layers and sub-blocks: block influence from one pass, leave-one-out loss from one pass over many
candidates.

Both stream the model block by block. Leave-one-out carries one hidden state per candidate, and candidates
share everything up to the first layer in which they differ, so each block is read once per pass.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.calibration.activations import Activations, Budget
from secateur.calibration.stream import Stream, batches_of
from secateur.calibration.walk import walk
from secateur.methods.block_influence import BlockInfluence
from secateur.model.sites import sites_of
from secateur.model.streamed import Outer
from secateur.model.surgery import silence
from secateur.numerics.layer_information import LayerInformation
from secateur.system import distributed

EXHAUSTIVE = 4  # all combinations are tried where they're at most this many times the layers

Part = tuple[int, str]  # (layer, what of it): "layer" is all of it, "attention" and "ffn" are its sub-blocks


def scores_of_layers(
    measure: str, outer: Outer, tokens: Tensor, step: Callable[[str], None] = lambda text: None
) -> list[float]:
    """Score of every layer of the untouched model (higher = keep), from one walk.

    Args:
        measure: `block_influence`, `entropy_increase` or `layer_mi`.
    """
    scores = []
    for block in walk(outer, tokens):
        found: BlockInfluence | LayerInformation = BlockInfluence(outer.device)
        if measure != "block_influence":
            found = LayerInformation(int(outer.checkpoint.config.hidden_size), outer.device)
        for i in range(len(block.stream.batches)):
            before = block.stream.states[i].to(outer.device)
            found.update(before, block.stream.forward(block.layer, block.index, i, outer.device))
        distributed.all_reduce(found.tensors())
        if isinstance(found, BlockInfluence):
            scores.append(found.value)
        else:
            scores.append(found.entropy_increase if measure == "entropy_increase" else found.unknown)
        step(f"layer {block.index}")
    return scores


def loss_without(
    outer: Outer,
    tokens: Tensor,
    candidates: Sequence[frozenset[Part]],
    budget: Budget | None = None,
    work: Path | None = None,
) -> list[float]:
    """Mean negative log likelihood of the calibration tokens with each set of layers and sub-blocks left out.

    One pass over the blocks for all candidates: a candidate whose removed parts all lie further on shares
    the state of the others with the same removed parts so far.
    """
    budget = budget or Budget(None)
    start = Stream.start(outer, batches_of(tokens), budget, work and work / "start.bin")
    outer.release()
    states: dict[frozenset[Part], Activations] = {frozenset(): start.states}
    serial = itertools.count()
    for index in range(outer.checkpoint.layers):
        layer = outer.load(index)
        following: dict[frozenset[Part], Activations] = {}
        # In the candidates' order: a set of words has another one on every rank, and the losses are summed over them.
        for removed in dict.fromkeys(frozenset(part for part in c if part[0] <= index) for c in candidates):
            own = frozenset(part for part in removed if part[0] == index)
            source = states[removed - own]
            target = Activations(budget, work and work / f"candidate-{next(serial)}.bin")
            stream = Stream(start.batches, source, start.calls)
            left = _without(outer, layer, own)
            for i in range(len(start.batches)):
                target[i] = source[i] if left is None else stream.forward(left, index, i, outer.device)
            following[removed] = target
        for old in states.values():
            old.close()
        states = following
    losses = {removed: _loss(outer, start.batches, final) for removed, final in states.items()}
    for old in states.values():
        old.close()
    return [losses[c] for c in candidates]


def _without(outer: Outer, layer: nn.Module, gone: frozenset[Part]) -> nn.Module | None:
    """What is left of a layer; None if it goes whole."""
    kinds = {kind for _, kind in gone}
    if not kinds or "layer" in kinds:
        return None if kinds else layer
    left, checkpoint = copy.deepcopy(layer), outer.checkpoint
    for site in sites_of(left, checkpoint.family, 0, checkpoint.head_dim):
        if site.kind in kinds:
            silence(left, site)
    return left


def _loss(outer: Outer, batches: list[Tensor], states: Activations) -> float:
    sums = torch.zeros(2, dtype=torch.float64, device=outer.device)
    for i, ids in enumerate(batches):
        logits = outer.logits(ids, states[i])[:, :-1].float().flatten(0, 1)
        targets = ids[:, 1:].flatten().to(logits.device)
        sums[0] += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").double()
        sums[1] += targets.numel()
    distributed.all_reduce([sums])
    return float(sums[0] / sums[1])


def leave_out(
    outer: Outer,
    tokens: Tensor,
    count: int,
    allowed: Sequence[Part],
    step: Callable[[str], None] = lambda text: None,
    budget: Budget | None = None,
    work: Path | None = None,
    before: frozenset[Part] = frozenset(),
) -> tuple[frozenset[Part], dict[Part, float]]:
    """The `count` parts without which the loss is lowest, and each candidate part's loss when it was weighed.

    All combinations are tried where there are few, otherwise one part after the other (greedy).

    Args:
        before: what has gone already, and isn't counted.
    """
    single = loss_without(outer, tokens, [before | {part} for part in allowed], budget, work)
    losses = dict(zip(allowed, single, strict=True))
    step("one out")
    if count == 1:
        return frozenset({min(losses, key=lambda part: (losses[part], part))}), losses
    if math.comb(len(allowed), count) <= EXHAUSTIVE * outer.checkpoint.layers:
        sets = [frozenset(c) for c in itertools.combinations(allowed, count)]
        found = loss_without(outer, tokens, [before | gone for gone in sets], budget, work)
        step("all combinations")
        best = min(range(len(sets)), key=lambda k: (found[k], sorted(sets[k])))
        return sets[best], losses
    removed = frozenset({min(losses, key=lambda part: (losses[part], part))})
    while len(removed) < count:
        rest = [part for part in allowed if part not in removed]
        found = loss_without(outer, tokens, [before | removed | {part} for part in rest], budget, work)
        losses |= dict(zip(rest, found, strict=True))
        removed |= {rest[min(range(len(rest)), key=lambda k: (found[k], rest[k]))]}
        step(f"{len(removed)} out")
    return removed, losses
