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

from secateur.calibration.activations import Activations, MemoryBudget
from secateur.calibration.stream import Stream, batches_of, first_of
from secateur.calibration.walk import walk
from secateur.methods.block_influence import BlockInfluence
from secateur.model.heads import BODY, SPAN, head_of, predicts_texts
from secateur.model.sites import sites_of
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import silence
from secateur.numerics.divergence import kl_of_each, nll_of_each
from secateur.numerics.layer_information import LayerInformation
from secateur.numerics.precision import wide_dtype
from secateur.system import distributed

TOKENS = 4096  # of the calibration text that sets of parts are weighed on
EXHAUSTIVE = 4  # all combinations are tried where they're at most this many times the layers

ModelPart = tuple[int, str]  # (layer, what of it): "layer" is all of it, "attention" and "ffn" are its sub-blocks


def scores_of_layers(
    measure: str, streamed: StreamedModel, tokens: Tensor, step: Callable[[str], None] = lambda text: None
) -> list[float]:
    """Score of every layer of the untouched model (higher = keep), from one walk.

    Args:
        measure: `block_influence`, `entropy_increase` or `layer_mi`.
    """
    scores = []
    for block in walk(streamed, tokens):
        found: BlockInfluence | LayerInformation = BlockInfluence(streamed.device)
        if measure != "block_influence":
            found = LayerInformation(int(streamed.checkpoint.config.hidden_size), streamed.device)
        for i in range(len(block.stream.batches)):
            before = block.stream.states[i].to(streamed.device)
            found.update(before, block.stream.forward(block.layer, block.index, i, streamed.device))
        distributed.all_reduce(found.tensors())
        if isinstance(found, BlockInfluence):
            scores.append(found.value)
        else:
            scores.append(found.entropy_increase if measure == "entropy_increase" else found.unknown)
        step(f"layer {block.index}")
    return scores


def loss_without(
    streamed: StreamedModel,
    tokens: Tensor,
    candidates: Sequence[frozenset[ModelPart]],
    budget: MemoryBudget | None = None,
    work: Path | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> list[float]:
    """Mean negative log likelihood of the calibration tokens with each set of layers and sub-blocks left out; of a
    model that predicts no next token, how far it is from what the untouched one says.

    One pass over the blocks for all candidates: a candidate whose removed parts all lie further on shares
    the state of the others with the same removed parts so far.
    """
    budget = budget or MemoryBudget(None)
    causal, asked = streamed.checkpoint.family.causal, candidates
    candidates = candidates if causal else [frozenset(), *candidates]
    start = Stream.start(streamed, batches_of(tokens), budget, work and work / "start.bin")
    streamed.release()
    states: dict[frozenset[ModelPart], Activations] = {frozenset(): start.states}
    serial = itertools.count()
    for index in range(streamed.checkpoint.layers):
        layer = streamed.load(index)
        following: dict[frozenset[ModelPart], Activations] = {}
        # In the candidates' order: a set of words has another one on every rank, and the losses are summed over them.
        for removed in dict.fromkeys(frozenset(part for part in c if part[0] <= index) for c in candidates):
            own = frozenset(part for part in removed if part[0] == index)
            source = states[removed - own]
            target = Activations(budget, work and work / f"candidate-{next(serial)}.bin")
            stream = start.with_states(source)
            left = _without(streamed, layer, own)
            for i in range(len(start.batches)):
                target[i] = source[i] if left is None else stream.forward(left, index, i, streamed.device)
            following[removed] = target
        for old in states.values():
            old.close()
        states = following
        step(f"layer {index}")
    if causal:
        losses = {removed: _loss(streamed, start.batches, final) for removed, final in states.items()}
    else:
        dense = states[frozenset()]
        losses = {removed: _drift(streamed, start.batches, final, dense) for removed, final in states.items()}
    for old in states.values():
        old.close()
    return [losses[c] for c in asked]


def _without(streamed: StreamedModel, layer: nn.Module, gone: frozenset[ModelPart]) -> nn.Module | None:
    """What is left of a layer; None if it goes whole."""
    kinds = {kind for _, kind in gone}
    if not kinds or "layer" in kinds:
        return None if kinds else layer
    left, checkpoint = copy.deepcopy(layer), streamed.checkpoint
    for site in sites_of(left, checkpoint.family, 0, checkpoint.head_dim):
        if site.kind in kinds:
            silence(left, site)
    return left


def _loss(streamed: StreamedModel, batches: list[Tensor], states: Activations) -> float:
    sums = torch.zeros(2, dtype=wide_dtype(streamed.device), device=streamed.device)
    for i, ids in enumerate(batches):
        losses = nll_of_each(streamed.logits(ids, states[i])[:, :-1], ids[:, 1:])
        sums += torch.stack([losses.sum(dtype=sums.dtype), sums.new_tensor(losses.numel())])
    distributed.all_reduce([sums])
    return float(sums[0] / sums[1])


def _drift(streamed: StreamedModel, batches: list[Tensor], states: Activations, dense: Activations) -> float:
    """Mean KL of what is predicted from what the untouched model predicts; of hidden states 1 - cosine."""
    head = head_of(streamed.checkpoint.whole_config)
    sums = torch.zeros(2, dtype=wide_dtype(streamed.device), device=streamed.device)
    for i, ids in enumerate(batches):
        own, other = (streamed.logits(ids, found[i]) for found in (states, dense))
        if head is SPAN:  # which token an answer begins with, and ends with
            own, other = own.transpose(1, 2), other.transpose(1, 2)
        if head is BODY:
            terms = 1 - torch.cosine_similarity(own.float(), other.float(), dim=-1)
        else:
            terms = kl_of_each(own, other)
        sums += torch.stack([terms.sum(dtype=sums.dtype), sums.new_tensor(terms.numel())])
    distributed.all_reduce([sums])
    return float(sums[0] / sums[1])


def leave_out(
    streamed: StreamedModel,
    tokens: Tensor,
    count: int,
    allowed: Sequence[ModelPart],
    step: Callable[[str], None] = lambda text: None,
    budget: MemoryBudget | None = None,
    work: Path | None = None,
    before: frozenset[ModelPart] = frozenset(),
) -> tuple[frozenset[ModelPart], dict[ModelPart, float]]:
    """The `count` parts without which the loss is lowest, and each candidate part's loss when it was weighed.

    All combinations are tried where there are few, otherwise one part after the other (greedy), each time on the
    first sequences, of some `TOKENS` tokens; on all of them where a model predicts once for a text.

    Args:
        step: called after each layer of each pass, of which there are `passes_of`.
        before: what has gone already, and isn't counted.
    """
    some = tokens if predicts_texts(streamed.checkpoint.whole_config) else first_of(tokens, TOKENS)

    def losses_without(sets: list[frozenset[ModelPart]], said: str) -> list[float]:
        now = [before | gone for gone in sets]
        return loss_without(streamed, some, now, budget, work, lambda layer: step(f"{said}, {layer}"))

    single = losses_without([frozenset({part}) for part in allowed], "one out")
    losses = dict(zip(allowed, single, strict=True))
    if count == 1:
        return frozenset({min(losses, key=lambda part: (losses[part], part))}), losses
    if _all_sets(len(allowed), count, streamed.checkpoint.layers):
        sets = [frozenset(c) for c in itertools.combinations(allowed, count)]
        found = losses_without(sets, "all combinations")
        best = min(range(len(sets)), key=lambda k: (found[k], sorted(sets[k])))
        return sets[best], losses
    removed = frozenset({min(losses, key=lambda part: (losses[part], part))})
    while len(removed) < count:
        rest = [part for part in allowed if part not in removed]
        found = losses_without([removed | {part} for part in rest], f"{len(removed) + 1} out")
        losses |= dict(zip(rest, found, strict=True))
        removed |= {rest[min(range(len(rest)), key=lambda k: (found[k], rest[k]))]}
    return removed, losses


def passes_of(allowed: int, count: int, layers: int) -> int:
    """Passes over the layers in which `leave_out` finds `count` of the allowed parts."""
    return min(count, 2) if _all_sets(allowed, count, layers) else count


def _all_sets(allowed: int, count: int, layers: int) -> bool:
    return math.comb(allowed, count) <= EXHAUSTIVE * layers
