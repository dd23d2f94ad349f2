"""Diagonal Fisher information (Theis et al. 2018, https://arxiv.org/abs/1801.05787, eq. 10): the expected increase
of the loss at a minimum, where the gradient is zero and the curvature is that of the squared gradients.

Weights: ½ w² F_w, over the whole matrix. Units: the same, added up over all parameters that a unit owns, as if they
had nothing to do with each other; the paper's own score of a unit is `gate_fisher`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units
from secateur.numerics.moments import Moments


@torch.no_grad()
def score(W: Tensor, moments: Moments, gradients: Mapping[str, Tensor]) -> Tensor:
    """½ W_ij² F_ij, (out, in) fp32."""
    return W.float().square() * gradients["fisher"].to(W.device) / 2


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """½ Σ_w w² F_w over a unit's parameters, (units,) fp64."""
    return (units.group.square() * units.gradients["fisher"]).sum(1).cpu().double() / 2


METHOD = Method.listed("fisher", score=score, scope="matrix", score_units=score_units)
