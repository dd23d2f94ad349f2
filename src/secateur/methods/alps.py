"""ALPS: the best mask and weights together, by ADMM (Meng et al. 2024, https://arxiv.org/abs/2406.07831).

    minimise  tr((V - W) G (V - W)ᵀ)   over V with at most k non-zeros (or N of each M)

is split into a dense V and a sparse D that are pulled together by a penalty ρ (section 3.2): V solves a ridge
problem, for which G is diagonalised once; D is the projection of V + Y / ρ on the pattern; Y is the dual. ρ grows
by how much the support still moves (Theorem 1), until it stands still. Then the weights on that support are
solved for by preconditioned conjugate gradients from D, which is close already (section 3.3).

As in the paper the columns are scaled to unit diagonal of G first, so that ρ means the same for all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secateur.methods.contract import Method, Solution
from secateur.numerics.conjugate import masked_conjugate
from secateur.numerics.linalg import damped, live_inputs
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import Pattern

DAMPING = 1e-3
FIRST_RHO = 0.1
STEPS = 300
EVERY = 3  # steps between two looks at the support


class Spectrum(NamedTuple):
    """A damped Gram matrix, what scales it to unit diagonal, and its eigenvectors then."""

    damped: Tensor
    live: Tensor
    scale: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, gram: Tensor) -> Spectrum:
        H = damped(gram, DAMPING, torch.float32)
        scale = H.diagonal().rsqrt()
        values, vectors = torch.linalg.eigh(H * scale[:, None] * scale[None, :])
        return cls(H, live_inputs(gram), scale, values.clamp_min(0), vectors)


@torch.no_grad()
def solve(W: Tensor, moments: Moments, pattern: Pattern, sparsity: float) -> Solution:
    """W (out, in) pruned to the pattern; fp32. Needs the Gram matrix of the inputs.

    Raises InputError where N:M does not divide `in`.
    """
    pattern.validate(W.shape[1], "the weight")
    spectrum = moments.once(f"alps {W.device}", lambda: Spectrum.of(moments.gram.to(W.device)))
    start = W.float() / spectrum.scale * spectrum.live  # what reads only zeros goes first
    sparse, mask = admm(start, spectrum.values, spectrum.vectors, pattern, sparsity)
    if bool(mask.all()):
        return Solution(W.detach().to(torch.float32, copy=True), mask, DAMPING)
    return Solution(masked_conjugate(W, spectrum.damped, mask, sparse * spectrum.scale), mask, DAMPING)


def admm(W: Tensor, values: Tensor, vectors: Tensor, pattern: Pattern, sparsity: float) -> tuple[Tensor, Tensor]:
    """(weights, support), both (out, in), that ADMM settles on.

    Args:
        W: (out, in), with its columns scaled like G.
        values, vectors: eigenvalues (in,) and eigenvectors (in, in) of G, whose diagonal is one.
    """
    WG = W @ (vectors * values) @ vectors.T
    support = _project(W, pattern, sparsity)
    sparse, dual, rho = torch.where(support, W, 0), torch.zeros_like(W), FIRST_RHO
    kept, new = int(support.sum()), support
    for step in range(STEPS):
        if step % EVERY == 0:
            inverse = (vectors / (values + rho)) @ vectors.T
        dense = (WG - dual + rho * sparse) @ inverse
        moved = dense + dual / rho
        new = _project(moved, pattern, sparsity)
        sparse = torch.where(new, moved, 0)
        dual += rho * (dense - sparse)
        if step % EVERY == EVERY - 1:
            changed = int((new != support).sum()) // 2
            if changed == 0:
                break
            rho *= 1.3 if changed >= 0.1 * kept else 1.2 if changed >= 0.005 * kept else 1.1
            support = new
    return sparse, new


def _project(scores: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    return pattern.mask(scores.abs(), sparsity, "matrix")


METHOD = Method.listed("alps", solve=solve)
