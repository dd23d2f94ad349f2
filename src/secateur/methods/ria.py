"""RIA: relative importance and activations (Zhang et al. 2024, https://iclr.cc/virtual/2024/poster/18549).

    score_ij = (|W_ij| / Σ_k |W_ik| + |W_ij| / Σ_k |W_kj|) · ‖x_j‖₂^a,   a = 1/2

A weight counts by its share of what reads and of what writes beside it, so no input and no output loses all of its
weights because they are small. The norm is divided by √n (the rms), which changes no order. Scores are compared over
the whole matrix: being shares, they mean the same in every row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.numerics.moments import Moments

POWER = 0.5


@torch.no_grad()
def score(W: Tensor, moments: Moments) -> Tensor:
    """(out, in) fp32; 0 for weights of rows or columns that are all zero."""
    size = W.float().abs()
    tiny = torch.finfo(size.dtype).tiny
    shares = size / size.sum(1, keepdim=True).clamp_min(tiny) + size / size.sum(0, keepdim=True).clamp_min(tiny)
    return shares * moments.rms.to(W.device).pow(POWER)


METHOD = Method.listed("ria", score=score, scope="matrix")
