"""Fitting a model with fewer hidden dimensions to the one that it was made from, Linear by Linear.

Both models run side by side. Each Linear gets the weights that, from what it sees in the narrow model, come nearest
to what its original gives in the untouched one; those that write to the stream also make up for what the stream lacks
there already. A ridge pulls towards the weights as they were cut, so nothing gets worse on what it is fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateur.calibration.activations import MemoryBudget
from secateur.calibration.stream import Stream, batches_of
from secateur.calibration.walk import Block, agree, round_to_stored
from secateur.model.checkpoint import Checkpoint
from secateur.model.linears import Linear
from secateur.model.rotation import producers
from secateur.model.streamed import StreamedModel
from secateur.numerics.moments import Moments
from secateur.numerics.precision import wide_dtype
from secateur.numerics.targets import NEEDS, best_bias, retarget
from secateur.system import distributed


class ModelPair(NamedTuple):
    """The narrow model, the one that it was made from, and the basis (d, k) that lies between their streams."""

    narrow: StreamedModel
    original: StreamedModel
    Q: Tensor


@dataclass(frozen=True)
class Narrowed:
    """A model with fewer hidden dimensions.

    Args:
        checkpoint: the narrow one.
        units: hidden dimensions of the original.
        kept: how many are left.
        scores: importance of each direction, the most important first.
        energies: place in the model -> the share of what is read there that the kept directions carry.
    """

    checkpoint: Checkpoint
    units: int
    kept: int
    method: str
    scores: Sequence[float]
    energies: dict[str, float]


@torch.no_grad()
def fit_hidden(
    pair: ModelPair,
    tokens: Tensor,
    finished: Callable[[int], nn.Module | None],
    edited: Callable[[nn.Module, int], None],
    step: Callable[[str], None],
    budget: MemoryBudget,
    work: Path | None,
) -> Tensor:
    """Fits every layer of the narrow model, in order, and gives the head's weight (vocabulary, k) that fits best.

    Args:
        finished: a layer that an interrupted run has fitted, or None.
        edited: called with each one that is fitted now.
    """
    narrow, original = pair.narrow, pair.original
    batches = batches_of(tokens)
    own = Stream.start(narrow, batches, budget, work and work / "narrow.bin")
    dense = Stream.start(original, batches, budget, work and work / "dense.bin")
    narrow.release()
    original.release()
    try:
        for index in range(narrow.checkpoint.layers):
            before, layer = original.load(index), finished(index)
            if layer is None:
                layer = narrow.load(index)
                _fit_layer(Block(index, layer, narrow, own, dense=(before, dense), basis=pair.Q))
                agree(layer)
                round_to_stored(layer, narrow, index)
                edited(layer, index)
            own.advance(layer, index, narrow.device)
            dense.advance(before, index, original.device)
            step(f"layer {index}")
            del before, layer
        return _fitted_head(pair, own, dense)
    finally:
        own.states.close()
        dense.states.close()


def _fitted_head(pair: ModelPair, own: Stream, dense: Stream) -> Tensor:
    """The head's weight (vocabulary, k) fp32 for which the logits are nearest to the untouched model's."""
    narrow, original = pair.narrow, pair.original
    d, k = pair.Q.shape
    moments = Moments(k, frozenset({"gram", "mean", "cross"}), narrow.device, d)
    for i, ids in enumerate(own.batches):
        moments.update(narrow.normed(ids, own.states[i]), original.normed(ids, dense.states[i]))
    distributed.all_reduce(moments.tensors())
    head, before = (streamed.head().weight.float() for streamed in (narrow, original))
    return retarget(head, moments, "dense", before, False)[0]


def _fit_layer(block: Block) -> None:
    assert block.dense is not None
    assert block.basis is not None
    wide = wide_dtype(block.streamed.device)
    Q = block.basis.to(wide)
    to_stream = {name.removesuffix(".weight") for name in producers(block.layer, block.streamed.checkpoint.family)}
    for stage in block.stages(NEEDS["residual"], sequential=True):
        for linear, moments in stage:
            dense, bias = block.untouched(linear)
            if linear.name.partition("[")[0] in to_stream:
                dense = (Q.T.to(dense.device) @ dense.to(wide)).float()
                bias = None if bias is None else (bias.to(wide) @ Q.to(bias.device)).float()
            fit_linear(linear, moments, dense, bias)


def fit_linear(linear: Linear, moments: Moments, dense: Tensor, dense_bias: Tensor | None) -> None:
    """Solves one Linear for what `dense` gives on the untouched model's inputs.

    Args:
        moments: with the needs of target `residual`; without any token nothing changes.
        dense: weight (out, dense inputs) and `dense_bias` (out,) in the narrow model's coordinates.
    """
    biased = linear.bias is not None
    solved, _ = retarget(linear.weight, moments, "residual", dense, biased)
    linear.weight = solved
    if linear.bias is not None:
        linear.bias.add_(best_bias(solved, linear.bias, moments, dense, dense_bias).to(linear.bias.dtype))
