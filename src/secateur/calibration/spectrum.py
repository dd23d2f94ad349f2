"""What the norms of a model hand on: E[x xᵀ] at every place where the stream is read, gains aside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateur.calibration.activations import MemoryBudget
from secateur.calibration.stream import Stream
from secateur.calibration.walk import Block, walk
from secateur.model.rotation import EPSILON, norm_consumers
from secateur.model.streamed import StreamedModel
from secateur.numerics.linalg import wide_dtype
from secateur.system import distributed

NEGLIGIBLE = 1e-4  # a gain below this part of the largest says too little about what came in


class Place(NamedTuple):
    """E[x xᵀ] (d, d), fp64 on the CPU, of what is read at a place: `layers.3.attention`, `layers.3.ffn` or `head`."""

    name: str
    moment: Tensor


@torch.no_grad()
def moments_of_stream(
    streamed: StreamedModel,
    tokens: Tensor,
    step: Callable[[str], None] = lambda text: None,
    budget: MemoryBudget | None = None,
    work: Path | None = None,
) -> list[Place]:
    """One walk through the untouched model; x has a mean square of one at every place.

    Where experts read the stream, what enters them is left out: each sees only some of the tokens.
    """
    found: list[Place] = []

    def at_end(stream: Stream) -> None:
        found.append(Place("head", _of_states(stream, streamed)))

    for block in walk(streamed, tokens, budget=budget, work=work, at_end=at_end):
        found += _of_block(block)
        step(f"layer {block.index}")
    return found


def _of_block(block: Block) -> list[Place]:
    family, sources = block.streamed.checkpoint.family, {linear.source for linear in block.linears}
    consumers = {}
    for what, (norm, names) in zip(("attention", "ffn"), norm_consumers(block.layer, family), strict=True):
        source = next(
            (name.removesuffix(".weight") for name in names if name.removesuffix(".weight") in sources), None
        )
        if source is not None:
            consumers[what] = (source, block.layer.get_parameter(f"{norm}.weight"))
    moments = block.moments([source for source, _ in consumers.values()], frozenset({"gram"}))
    return [
        Place(f"layers.{block.index}.{what}", _without(gain, moments[source].gram))
        for what, (source, gain) in consumers.items()
    ]


def _without(gain: Tensor, gram: Tensor) -> Tensor:
    """E[x xᵀ] from that of what a norm's gain has been multiplied with."""
    gain = gain.detach().cpu().double()
    inverse = torch.where(gain.abs() > NEGLIGIBLE * gain.abs().max(), 1 / gain, 0.0)
    return gram.cpu().double() * torch.outer(inverse, inverse)


def _of_states(stream: Stream, streamed: StreamedModel) -> Tensor:
    d, epsilon = int(streamed.checkpoint.config.hidden_size), float(getattr(streamed.checkpoint.config, EPSILON))
    wide = wide_dtype(streamed.device)
    total = torch.zeros(d, d, dtype=wide, device=streamed.device)
    count = torch.zeros((), dtype=wide, device=streamed.device)
    for i in range(len(stream.batches)):
        x = stream.states[i].to(streamed.device).float().flatten(0, 1)
        x = nn.functional.rms_norm(x, (d,), eps=epsilon).to(wide)
        total += x.T @ x
        count += len(x)
    distributed.all_reduce([total, count])
    return (total / count.clamp_min(1)).cpu().double()
