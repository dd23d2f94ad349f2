"""Second-order Taylor (LLM-Pruner, Ma et al. 2023, https://arxiv.org/abs/2305.11627, eq. 5 with the second term):
the first-order change of the loss, less half of the curvature, whose diagonal is taken from squared gradients.

Units: Σ_w |w dL/dw - ½ w² F_w| over a unit's parameters, F_w the mean over tokens of the squared gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """(units,) fp64."""
    first = units.group * units.gradients["gradient"]
    second = units.group.square() * units.gradients["fisher"] / 2
    return (first - second).abs().sum(1).cpu().double()


METHOD = Method.listed("taylor2", score_units=score_units)
