"""What an error in a block's output costs the model: second-order loss, for each token and dimension.

To second order, changing a layer's output h by e changes the Kullback-Leibler divergence of the predictions by
½ eᵀ F e, F = E[g gᵀ] the Fisher information, g = d(-log p(y))/dh with y drawn from the model's own predictions.
Of F its diagonal is kept, and of that the part that factors into a weight of the token and a weight of the dimension:
one draw of g² is mostly noise, its means aren't. Block reconstruction weighs squared errors by

    w_td = (1 - SHARE) + SHARE · a_t · b_d,      a_t = mean over d of g²_td, b_d = mean over t, each over its own mean

that is, it minimises the error of the output and the second-order loss together (as MOONSHOT does for single Linears,
https://arxiv.org/abs/2604.13287): the first alone spends itself on what no prediction depends on, the second alone
trusts a quadratic far from where it holds.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from secateur.calibration.gradients import whole_model
from secateur.model.streamed import StreamedModel
from secateur.numerics.linalg import wide_dtype
from secateur.system import distributed
from secateur.system.memory import fits_in_memory

SHARE = 0.5
COPIES = 2  # of the model in fp32: the weights, and room for what a backward pass keeps


@dataclass
class LossWeights:
    """Weights of the squared errors of every layer's output.

    Args:
        tokens: for each layer, for each of this rank's batches, (sequences, length) fp32 on the CPU, mean 1.
        dimensions: for each layer, (hidden,) fp32 on the CPU, mean 1.
    """

    tokens: list[list[Tensor]] = field(default_factory=list)
    dimensions: list[Tensor] = field(default_factory=list)

    def of(self, layer: int, batch: int) -> Tensor:
        """(sequences, length, hidden)."""
        return (1 - SHARE) + SHARE * self.tokens[layer][batch][..., None] * self.dimensions[layer]


def why_not(streamed: StreamedModel) -> str | None:
    """Why a model's loss can't be looked at, in words; None if it can."""
    checkpoint = streamed.checkpoint
    if not checkpoint.family.causal:
        return f"{checkpoint.config.model_type} predicts no next token"
    if not fits_in_memory(COPIES * checkpoint.parameters):
        need, free = 6 * COPIES * checkpoint.parameters / 1e9, psutil.virtual_memory().available / 1e9
        return f"the whole model's gradients need about {need:.0f} GB, {free:.0f} GB are free"
    return None


@torch.enable_grad()
def loss_weights(
    streamed: StreamedModel,
    batches: Sequence[Tensor],
    seed: int,
    step: Callable[[str], None] = lambda text: None,
    counts: Sequence[Tensor] | None = None,
) -> LossWeights:
    """The weights, from one forward and one backward pass of the untouched model, which is in memory in fp32.

    Args:
        batches: this rank's token ids, each (sequences, length), as the walk takes them.
        seed: of the draws from the predictions.
        counts: for each batch, bool (sequences, length), the tokens whose predictions matter; None = all.
    """
    model = whole_model(streamed)
    layers = list(model.get_submodule(streamed.checkpoint.family.layers).children())
    squares: list[list[Tensor]] = [[] for _ in layers]
    device, wide = streamed.device, wide_dtype(streamed.device)
    sums = torch.zeros(len(layers), int(streamed.checkpoint.config.hidden_size), dtype=wide, device=device)
    totals = torch.zeros(len(layers), 2, dtype=wide, device=device)
    outputs = _watched(layers)
    for number, ids in enumerate(batches):
        outputs.clear()
        logits = model(input_ids=ids.to(device), use_cache=False).logits[:, :-1].flatten(0, 1).float()
        if counts is not None:
            logits = logits[counts[number][:, 1:].flatten().to(device)]
        if not len(logits):  # nothing in it that matters
            for index in range(len(layers)):
                squares[index].append(torch.zeros(ids.shape))
            continue
        # By its own text, so that it doesn't matter which rank has it.
        drawn = _draw(logits.detach(), seed + zlib.crc32(ids.numpy().tobytes()))
        loss = nn.functional.cross_entropy(logits, drawn, reduction="sum")
        for index, gradient in enumerate(torch.autograd.grad(loss, outputs)):
            square = gradient.float().square()
            squares[index].append(square.mean(-1).cpu())
            sums[index] += square.sum((0, 1), dtype=wide)
            totals[index] += torch.stack([square.mean(-1).sum(dtype=wide), totals.new_tensor(ids.numel())])
        step(f"batch {number + 1}")
    distributed.all_reduce([sums, totals])
    means = (totals[:, 0] / totals[:, 1].clamp_min(1)).tolist()
    tokens = [[s / (mean or 1) for s in own] for own, mean in zip(squares, means, strict=True)]
    dimensions = [(own / (float(own.mean()) or 1)).float().cpu() for own in sums]
    return LossWeights(tokens, dimensions)


def _watched(layers: list[nn.Module]) -> list[Tensor]:
    """A list that gets the layers' outputs at each forward pass. Parameters have no gradients: the graph begins at
    the first layer's input."""
    outputs: list[Tensor] = []

    def begin(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0].detach().requires_grad_(True), *given[1:])

    def keep(layer: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        outputs.append(out[0] if isinstance(out, tuple | list) else out)

    layers[0].register_forward_pre_hook(begin)
    for layer in layers:
        layer.register_forward_hook(keep)
    return outputs


def _draw(logits: Tensor, seed: int) -> Tensor:
    """A next token for each row of (tokens, vocabulary), from the model's own predictions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator).flatten().to(logits.device)
