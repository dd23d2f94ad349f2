"""What the norms of a model hand on: E[x xᵀ] at every place where the stream is read, gains aside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateur.calibration.activations import Budget
from secateur.calibration.stream import Stream
from secateur.calibration.walk import Block, walk
from secateur.model.rotation import EPSILON, norm_readers
from secateur.model.streamed import Outer
from secateur.numerics.linalg import wide_dtype
from secateur.system import distributed

NEGLIGIBLE = 1e-4  # a gain below this part of the largest says too little about what came in


class Place(NamedTuple):
    """E[x xᵀ] (d, d), fp64 on the CPU, of what is read at a place: `layers.3.attention`, `layers.3.ffn` or `head`."""

    name: str
    moment: Tensor


@torch.no_grad()
def moments_of_stream(
    outer: Outer,
    tokens: Tensor,
    step: Callable[[str], None] = lambda text: None,
    budget: Budget | None = None,
    work: Path | None = None,
) -> list[Place]:
    """One walk through the untouched model; x has a mean square of one at every place.

    Where experts read the stream, what enters them is left out: each sees only some of the tokens.
    """
    found: list[Place] = []

    def at_end(stream: Stream) -> None:
        found.append(Place("head", _of_states(stream, outer)))

    for block in walk(outer, tokens, budget=budget, work=work, at_end=at_end):
        found += _of_block(block)
        step(f"layer {block.index}")
    return found


def _of_block(block: Block) -> list[Place]:
    family, sources = block.outer.checkpoint.family, {linear.source for linear in block.linears}
    readers = {}
    for what, (norm, names) in zip(("attention", "ffn"), norm_readers(block.layer, family), strict=True):
        source = next(
            (name.removesuffix(".weight") for name in names if name.removesuffix(".weight") in sources), None
        )
        if source is not None:
            readers[what] = (source, block.layer.get_parameter(f"{norm}.weight"))
    moments = block.moments([source for source, _ in readers.values()], frozenset({"gram"}))
    return [
        Place(f"layers.{block.index}.{what}", _without(gain, moments[source].gram))
        for what, (source, gain) in readers.items()
    ]


def _without(gain: Tensor, gram: Tensor) -> Tensor:
    """E[x xᵀ] from that of what a norm's gain has been multiplied with."""
    gain = gain.detach().cpu().double()
    inverse = torch.where(gain.abs() > NEGLIGIBLE * gain.abs().max(), 1 / gain, 0.0)
    return gram.cpu().double() * torch.outer(inverse, inverse)


def _of_states(stream: Stream, outer: Outer) -> Tensor:
    d, epsilon = int(outer.checkpoint.config.hidden_size), float(getattr(outer.checkpoint.config, EPSILON))
    wide = wide_dtype(outer.device)
    total = torch.zeros(d, d, dtype=wide, device=outer.device)
    count = torch.zeros((), dtype=wide, device=outer.device)
    for i in range(len(stream.batches)):
        x = stream.states[i].to(outer.device).float().flatten(0, 1)
        x = nn.functional.rms_norm(x, (d,), eps=epsilon).to(wide)
        total += x.T @ x
        count += len(x)
    distributed.all_reduce([total, count])
    return (total / count.clamp_min(1)).cpu().double()
