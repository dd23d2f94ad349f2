"""The control: units and weights in a random order, drawn from the run's seed. What doesn't beat this knows nothing
(compare https://arxiv.org/abs/1801.10447, where random filters come out close to every criterion after retraining).
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Basis, Method
from secateur.methods.units import ExpertUnits, Units
from secateur.numerics.moments import Moments


@torch.no_grad()
def score(W: Tensor, moments: Moments | None = None) -> Tensor:
    """Uniform in (0, 1], (out, in) fp32; the same for every matrix of a shape."""
    return 1 - torch.rand(W.shape, generator=torch.Generator().manual_seed(0)).to(W.device)


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """Uniform in (0, 1], (units,) fp64, other ones for each site and seed."""
    generator = torch.Generator().manual_seed(units.seed)
    return 1 - torch.rand(units.count, generator=generator, dtype=torch.float64)


@torch.no_grad()
def score_experts(experts: ExpertUnits) -> Tensor:
    """Uniform in (0, 1], (experts,) fp64, other ones for each layer and seed."""
    generator = torch.Generator().manual_seed(experts.seed)
    return 1 - torch.rand(experts.count, generator=generator, dtype=torch.float64)


@torch.no_grad()
def basis(moment: Tensor, seed: int) -> Basis:
    """Directions that are uniform among all orthonormal ones; the importance of each is its place from the end."""
    size = len(moment)
    drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors, triangle = torch.linalg.qr(drawn)
    return Basis(vectors * triangle.diagonal().sign(), torch.arange(size, 0, -1, dtype=torch.float64))


METHOD = Method.listed(
    "random", score=score, scope="matrix", score_units=score_units, score_experts=score_experts, basis=basis
)
