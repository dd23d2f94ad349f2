"""Mean size of the activations: units that are hardly ever on (compare Hu et al. 2016,
https://arxiv.org/abs/1607.03250, who count zeros; smooth activation functions have none, so sizes are averaged).

Score: Σ_(j in unit) E|x_j|. It doesn't look at the weights that read the unit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """(units,) fp64."""
    return units.moments.mean_abs.cpu().double().view(units.count, units.width).sum(1)


METHOD = Method.listed("activation", score_units=score_units)
