"""Wanda (Sun et al. 2023, https://arxiv.org/abs/2306.11695): weights times the norm of what they read.

Weights: |W_ij| · ‖X_j‖₂ (eq. 1), compared inside each output row. With the norm divided by √n (the rms),
which changes no order. Units: Wanda-sp, the structured form that FLAP's authors compare with
(An et al. 2023, https://arxiv.org/abs/2312.11983): the scores of all reader weights of a unit, added up.
"""

from __future__ import annotations

from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units
from secateur.numerics.moments import Moments


def score(W: Tensor, moments: Moments) -> Tensor:
    """|W_ij| rms_j, (out, in) fp32."""
    return W.float().abs() * moments.rms.to(W.device)


def score_units(units: Units) -> Tensor:
    """Σ_i Σ_(j in unit) W_ij² rms_j², (units,) fp64."""
    energy = units.reader.float().square().sum(0) * units.moments.second_moment.to(units.reader.device)
    return energy.view(units.count, units.width).sum(1).cpu().double()


METHOD = Method(
    name="wanda",
    title="Wanda",
    paper="https://arxiv.org/abs/2306.11695",
    needs=frozenset({"rms"}),
    score=score,
    score_units=score_units,
)
