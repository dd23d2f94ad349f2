"""First-order Taylor, element by element (LLM-Pruner, Ma et al. 2023, https://arxiv.org/abs/2305.11627, eq. 5;
the idea: Molchanov et al. 2017, https://arxiv.org/abs/1611.06440): by how much the loss changes, to first order, if a
weight becomes zero.

Weights: E|w dL_s/dw| over the sequences s, over the whole matrix. Units: the same, added up over all parameters that
a unit owns.

Deviation: the paper takes the gradient of ten short sequences together. That of the whole calibration text is close
to zero in a trained model, and what is left is noise; sequence by sequence it isn't.
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
    """E|W_ij dL_s/dW_ij|, (out, in) fp32."""
    return (W.float() * gradients["gradient_size"].to(W.device)).abs()


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """Σ_w E|w dL_s/dw| over a unit's parameters, (units,) fp64."""
    return (units.group * units.gradients["gradient_size"]).abs().sum(1).cpu().double()


METHOD = Method.listed("taylor", score=score, scope="matrix", score_units=score_units)
