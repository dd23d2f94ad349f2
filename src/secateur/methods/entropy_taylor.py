"""Taylor expansion of the predictions' entropy instead of a loss (HFPrune, https://arxiv.org/abs/2603.08083): no
labels, so what the model is unsure of is kept as it is, right or wrong.

Units: Σ_w E|w dH_s/dw| over all parameters that a unit owns, H_s the mean entropy of the predictions in sequence s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """(units,) fp64."""
    return (units.group * units.gradients["entropy_gradient"]).abs().sum(1).cpu().double()


METHOD = Method.listed("entropy_taylor", score_units=score_units)
