"""GBLM-Pruner: Wanda plus the size of the loss's gradient (Das et al. 2023, https://arxiv.org/abs/2311.04902, eq. 6).

    score_ij = |W_ij| (‖x_j‖₂ / mean + ‖G_ij‖₂ / mean),   ‖G_ij‖₂ over the gradients of single tokens

compared inside each row. Deviation: the paper adds 100 ‖G‖ to ‖x‖, a balance that depends on the units of both; here
each is divided by its mean over the matrix first, so that they weigh the same in any model.
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
    size, tiny = gradients["fisher"].sqrt().to(W.device), torch.finfo(torch.float32).tiny
    rms = moments.rms.to(W.device)
    return W.float().abs() * (rms / rms.mean().clamp_min(tiny) + size / size.mean().clamp_min(tiny))


METHOD = Method.listed("gblm", score=score)
