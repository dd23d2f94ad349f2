"""Wanda++'s regional gradient score (Yang et al. 2025, https://arxiv.org/abs/2503.04992, eq. 3): Wanda plus the
gradient of the block's own output norm, which needs no more than one block in memory.

    score_ij = |W_ij| (‖x_j‖₂ / mean + ‖R_ij‖₂ / mean),   R = d‖block(x)‖₂ / dW over batches

compared inside each row. Deviations: the paper adds 100 ‖R‖ to ‖x‖, a balance that depends on the units of both; here
each is divided by its mean over the matrix first. Its regional optimisation is left to `--reconstruct`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.numerics.moments import Moments


@torch.no_grad()
def score(W: Tensor, moments: Moments, gradients: Mapping[str, Tensor]) -> Tensor:
    """(out, in) fp32."""
    size, tiny = gradients["regional"].to(W.device), torch.finfo(torch.float32).tiny
    rms = moments.rms.to(W.device)
    return W.float().abs() * (rms / rms.mean().clamp_min(tiny) + size / size.mean().clamp_min(tiny))


METHOD = Method.listed("wanda_regional", score=score)
