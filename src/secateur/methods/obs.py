"""Greedy structured Optimal Brain Surgeon (Hassibi & Stork 1993; for units ZipLM, Kurtić et al. 2023,
https://arxiv.org/abs/2302.04089): remove one unit after the other, always the one whose removal, with all
remaining weights of the consumer moved to their best values, adds least to E‖W x - W' x‖².

With A = (E[x xᵀ] + damping)⁻¹ over the inputs that are left and V the consumer so far, a unit with inputs S costs
tr(V_S A_SS⁻¹ V_Sᵀ). The elimination is that of `numerics/elimination.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units
from secateur.numerics.elimination import eliminate, strictly_increasing
from secateur.numerics.linalg import DAMPING, inverse


@torch.no_grad()
def score_units(units: Units, *, damping: float = DAMPING) -> Tensor:
    """(units,) fp64: the objective at the moment when each unit went.

    Strictly increasing in the order of removal, so keeping the best k is keeping the last k.
    """
    gram = units.moments.gram.to(units.consumer.device)
    A, _ = units.moments.once(f"obs {damping} {gram.device}", lambda: inverse(gram, damping))
    order, objective = eliminate(units.consumer, A, units.width)
    scores = torch.empty(units.count, dtype=torch.float64)
    scores[order] = torch.tensor(strictly_increasing(objective), dtype=torch.float64)
    return scores


METHOD = Method.listed("obs", score_units=score_units, running=True)
