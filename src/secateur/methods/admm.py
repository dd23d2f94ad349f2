"""Gradual ADMM: weights that move while the mask is being found (Boža 2024, https://arxiv.org/abs/2401.02938).

    minimise  tr((V - W) G (V - W)ᵀ)   over V that are zero outside a mask

by ADMM with a fixed penalty ρ (Algorithm 1): V = (W G + ρ (D - Y)) (G + ρ)⁻¹, D = the entries of V + Y that the
mask keeps, Y += V - D. Columns are scaled to unit diagonal of G, so that ρ = 1 suits all of them and |V + Y| is
Wanda's score at the start. Over the first `RAMP` steps the mask takes more and more, s_t = s (t / RAMP)^⅓
(section 3.3, the cubic schedule); then it stands still.

Deviation: the end is least squares on the mask by conjugate gradients, which a few more steps would approach.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method, Solution
from secateur.numerics.conjugate import masked_conjugate
from secateur.numerics.linalg import damped, damped_cholesky, live_inputs
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import Pattern

DAMPING = 1e-3
RHO = 1.0
RAMP = 15
SETTLE = 5  # steps with the final mask


@torch.no_grad()
def solve(W: Tensor, moments: Moments, pattern: Pattern, sparsity: float) -> Solution:
    """W (out, in) pruned to the pattern; fp32. Needs the Gram matrix of the inputs.

    Raises InputError where N:M does not divide `in`.
    """
    pattern.validate(W.shape[1], "the weight")

    def prepare() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gram = moments.gram.to(W.device)
        G = damped(gram, DAMPING, torch.float32)
        scale = G.diagonal().rsqrt()
        scaled = G * scale[:, None] * scale[None, :]
        factor, _ = damped_cholesky(scaled, RHO)
        return G, scale, factor, live_inputs(gram)

    G, scale, factor, live = moments.once(f"admm {W.device}", prepare)
    alive = W.float() * live  # what reads only zeros goes first
    start, aim = alive / scale, (alive @ G) * scale
    sparse, dual = start, torch.zeros_like(start)
    mask = torch.ones_like(start, dtype=torch.bool)
    for step in range(1, RAMP + SETTLE + 1):
        if step <= RAMP:
            mask = pattern.partial((start + dual).abs(), sparsity, (step / RAMP) ** (1 / 3))
        sparse = torch.where(mask, start + dual, 0)
        dual = dual + start - sparse
        start = torch.cholesky_solve((aim + RHO * (sparse - dual)).T, factor).T
    if bool(mask.all()):
        return Solution(W.detach().to(torch.float32, copy=True), mask, DAMPING)
    return Solution(masked_conjugate(W, G, mask, sparse * scale), mask, DAMPING)


METHOD = Method.listed("admm", solve=solve)
