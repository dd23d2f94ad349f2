"""Activation times gradient (Molchanov et al. 2017, https://arxiv.org/abs/1611.06440, eq. 8): by how much the loss
changes, to first order, if what a unit hands to its consumer becomes zero.

E[Σ x_j dL/dx_j] over a unit's inputs j is Σ_i W_ij dL/dW_ij of the consumer, so the weights' gradients are enough.

Deviation: the mean over the text is taken before the absolute value, as gradients of weights can't be told apart by
token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """|Σ_(j in unit) Σ_i W_ij dL/dW_ij|, (units,) fp64."""
    # The consumer's columns are the last that a unit owns.
    own = units.consumer.shape[0] * units.width
    change = units.group[:, -own:] * units.gradients["gradient"][:, -own:]
    return change.sum(1).abs().cpu().double()


METHOD = Method.listed("gradient_activation", score_units=score_units)
