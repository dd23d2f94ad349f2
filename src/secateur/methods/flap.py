"""FLAP: units whose input hardly fluctuates can be replaced by a constant (An et al. 2023,
https://arxiv.org/abs/2312.11983).

Score (eq. 5): the variance of each input times the squared norm of the consumer's weights on it, added up over a
unit. It is what removing the unit costs once the bias takes over its mean; that bias, W_removed E[x_removed], is
what `least_squares_columns` with a mean gives, improved by moving the kept weights as well.

Deviation: scores are raw; standardising them over layers is a matter of allocation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """Σ_i Σ_(j in unit) W_ij² var_j, (units,) fp64."""
    inputs = units.consumer.float().square().sum(0) * units.moments.var.to(units.consumer.device)
    return inputs.view(units.count, units.width).sum(1).cpu().double()


METHOD = Method.listed("flap", score_units=score_units)
