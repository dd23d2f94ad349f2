"""Fisher information of a unit's gate (Theis et al. 2018, https://arxiv.org/abs/1801.05787, eq. 8 and 9): what the
loss gains at a minimum if the gate that lets a unit's output through is shut.

The gate's slope at a token is Σ x_j dl_t/dx_j over the unit's inputs j of its consumer, and the curvature is the mean
of its square: unlike the sum over a unit's weights taken one by one (`fisher`), that sees what they do together.

Deviation: the inputs of a head count as if each had a gate of its own, since their products would take d² numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """½ Σ_(j in unit) E[(x_j dl_t/dx_j)²], (units,) fp64."""
    # The consumer's columns are the last that a unit owns. Signs leave a little noise where all is zero.
    own = units.consumer.shape[0] * units.width
    return units.gradients["input_fisher"][:, -own:].sum(1).cpu().double().clamp_min(0) / 2


METHOD = Method.listed("gate_fisher", score_units=score_units)
