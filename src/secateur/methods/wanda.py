"""Wanda (Sun et al. 2023, https://arxiv.org/abs/2306.11695): weights times the norm of what they read.

Weights: |W_ij| · ‖X_j‖₂ (eq. 1), compared inside each output row. With the norm divided by √n (the rms),
which changes no order.

Units: Wanda-sp, the structured form that FLAP's authors compare with (An et al. 2023,
https://arxiv.org/abs/2312.11983): the scores of all consumer weights of a unit, added up as they are. Adding up
their squares instead gives other units but the same quality within 3 %.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units
from secateur.numerics.moments import Moments


@torch.no_grad()
def score(W: Tensor, moments: Moments) -> Tensor:
    """|W_ij| rms_j, (out, in) fp32."""
    return W.float().abs() * moments.rms.to(W.device)


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """Σ_i Σ_(j in unit) |W_ij| rms_j, (units,) fp64."""
    inputs = score(units.consumer, units.moments).sum(0)
    return inputs.view(units.count, units.width).sum(1).cpu().double()


METHOD = Method.listed("wanda", score=score, score_units=score_units)
