"""Magnitude pruning (Han et al. 2015, https://arxiv.org/abs/1506.02626): small weights matter least.

Weights: |W_ij|, compared over the whole matrix. Units: the L2 norm of all parameters that a unit owns
(Li et al. 2017, https://arxiv.org/abs/1608.08710, over the coupled group instead of one filter). Experts: the same.
No calibration data is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import ExpertUnits, Units
from secateur.numerics.moments import Moments


@torch.no_grad()
def score(W: Tensor, moments: Moments | None = None) -> Tensor:
    """|W|, (out, in) fp32."""
    return W.float().abs()


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """‖group_u‖₂, (units,) fp64."""
    return torch.linalg.vector_norm(units.group.float(), dim=1).cpu().double()


@torch.no_grad()
def score_experts(experts: ExpertUnits) -> Tensor:
    """‖parameters of an expert‖₂, (experts,) fp64."""
    return experts.norms.clone()


METHOD = Method.listed("magnitude", score=score, scope="matrix", score_units=score_units, score_experts=score_experts)
