"""Multivariate redundancy: what a unit writes, times the share of it that the units left behind don't know.

Redundancy between pairs of neurons (https://arxiv.org/abs/2406.00030) misses that many units together can carry one.
Under a Gaussian model of the inputs, the second moments that OBS uses give, for each unit q against all that are
still kept,

    I(z_q; z_K) = -½ log(s_q / v_q)      v_q = E[z_q²], s_q what is left of it once z_K is known (1 / A_qq)

and with what the consumer, solved anew on the kept units, does with it, the energy |V_q|² v_q, the cost of removal is

    |V_q|² v_q · e^(-2 I(z_q; z_K)) = |V_q|² s_q

which is OBS's. Greedy elimination (`numerics/elimination.py`), O(d³). docs/methods.md has the derivation.

For units of several inputs (heads) s and v are matrices, and the cost is tr(V_S s V_Sᵀ), likewise.

Differs from `obs` in the damping: it is the ridge of the refit, so that what is ranked is what the refit will leave.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units
from secateur.numerics.elimination import eliminate, least_error, strictly_increasing
from secateur.numerics.least_squares import RIDGE
from secateur.numerics.linalg import inverse


@torch.no_grad()
def score_units(units: Units, *, damping: float = RIDGE) -> Tensor:
    """(units,) fp64: the summed costs at the moment when each unit went; strictly increasing in that order."""
    gram = units.moments.gram.to(units.consumer.device)
    A, _ = units.moments.once(f"mi {damping} {gram.device}", lambda: inverse(gram, damping))
    order, objective = eliminate(units.consumer, A, units.width, least_error)
    scores = torch.empty(units.count, dtype=torch.float64)
    scores[order] = torch.tensor(strictly_increasing(objective), dtype=torch.float64)
    return scores


METHOD = Method.listed("mi", score_units=score_units, running=True)
