"""First-order Taylor, group-summed (LLM-Pruner, Ma et al. 2023, https://arxiv.org/abs/2305.11627, "vector"): by
how much the loss changes, to first order, if all parameters of a unit become zero together.

Changes of opposite sign cancel, as they do in the loss; near a minimum little else is left, so it is noisier than the
element-wise form (`methods/taylor.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """|Σ_w w dL/dw| over a unit's parameters, (units,) fp64."""
    return (units.group * units.gradients["gradient"]).sum(1).abs().cpu().double()


METHOD = Method.listed("taylor_group", score_units=score_units)
