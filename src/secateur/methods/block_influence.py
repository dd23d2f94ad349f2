"""Block influence: which layers turn the stream least (ShortGPT, Men et al. 2024,
https://arxiv.org/abs/2403.03853).

BI = 1 - E[cos(h_in, h_out)] over tokens (eq. 1), where h_in and h_out are the hidden states before and after
a decoder layer, residual included. Low = the layer hardly changes the stream's direction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.numerics.precision import wide_dtype


@torch.no_grad()
def token_influence(h_in: Tensor, h_out: Tensor) -> Tensor:
    """1 - cos(h_in, h_out) of each token, (..., d) -> (...) fp32. A token that is zero twice counts 0."""
    h_in, h_out = h_in.float(), h_out.float()
    distance = 1 - torch.nn.functional.cosine_similarity(h_in, h_out, dim=-1)
    untouched = (h_in == 0).all(-1) & (h_out == 0).all(-1)
    return distance.masked_fill(untouched, 0.0)


def block_influence(h_in: Tensor, h_out: Tensor) -> float:
    """Mean of `token_influence` over all tokens of (..., d), in [0, 2]."""
    return float(token_influence(h_in, h_out).cpu().double().mean())


class BlockInfluence:
    """Block influence over a stream of batches: sums that add up over batches and processes."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        self._sums = torch.zeros(2, dtype=wide_dtype(torch.device(device or "cpu")), device=device)

    def update(self, h_in: Tensor, h_out: Tensor) -> None:
        """Add the hidden states (..., d) of one batch."""
        influence = token_influence(h_in, h_out)
        self._sums[0] += influence.sum(dtype=self._sums.dtype)
        self._sums[1] += influence.numel()

    def merge(self, other: BlockInfluence) -> None:
        self._sums += other._sums.to(self._sums.device)

    def tensors(self) -> list[Tensor]:
        """The raw sums, for an all-reduce in place."""
        return [self._sums]

    @property
    def value(self) -> float:
        """Mean over all tokens seen; 0 before the first."""
        return float(self._sums[0] / self._sums[1].clamp_min(1))


METHOD = Method.listed("block_influence", score_layers="block_influence")
