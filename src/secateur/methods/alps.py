"""ALPS: the best mask and weights together, by ADMM (Meng et al. 2024, https://arxiv.org/abs/2406.07831).

    minimise  tr((V - W) G (V - W)ᵀ)   over V with at most k non-zeros (or N of each M)

is split into a dense V and a sparse D that are pulled together by a penalty ρ (section 3.2): V solves a ridge
problem, for which G is diagonalised once; D is the projection of V + Y / ρ on the pattern; Y is the dual. ρ grows
by how much the support still moves (Theorem 1), until it stands still. Then the weights on that support are
solved for exactly, row by row, or by preconditioned conjugate gradients where the rows are wide (section 3.3).

As in the paper the columns are scaled to unit diagonal of G first, so that ρ means the same for all of them.
Deviation: the result is compared with the mask that scaled magnitudes give, refitted the same way, and the better
of the two is returned; so it's never worse than masking alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secateur.methods.contract import Method, Solution
from secateur.numerics.conjugate import masked_conjugate
from secateur.numerics.least_squares import masked_least_squares
from secateur.numerics.linalg import damped, live_inputs, quadratic_error
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import Pattern

DAMPING = 1e-3
FIRST_RHO = 0.1
STEPS = 300
EVERY = 3  # steps between two looks at the support
EXACT_WIDTH = 512  # rows up to this width are solved exactly; wider ones by conjugate gradients


class Spectrum(NamedTuple):
    """A damped Gram matrix, what scales it to unit diagonal, and its eigenvectors then."""

    gram: Tensor
    damped: Tensor
    scale: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, gram: Tensor) -> Spectrum:
        H = damped(gram, DAMPING, torch.float32)
        scale = H.diagonal().rsqrt()
        values, vectors = torch.linalg.eigh(H * scale[:, None] * scale[None, :])
        return cls(gram, H, scale, values.clamp_min(0), vectors)


@torch.no_grad()
def solve(W: Tensor, moments: Moments, pattern: Pattern, sparsity: float) -> Solution:
    """W (out, in) pruned to the pattern; fp32. Needs the Gram matrix of the inputs.

    Raises InputError where N:M does not divide `in`.
    """
    pattern.validate(W.shape[1], "the weight")
    spectrum = moments.once(f"alps {W.device}", lambda: Spectrum.of(moments.gram.to(W.device)))
    start = W.float() / spectrum.scale * live_inputs(spectrum.gram)  # what reads only zeros goes first
    masks = [
        admm_mask(start, spectrum.values, spectrum.vectors, pattern, sparsity),
        _project(start, pattern, sparsity),
    ]
    found = []
    for mask in masks:
        weight, used = _fit(W, spectrum, mask)
        found.append((quadratic_error(W, weight, spectrum.gram)[0], Solution(weight, mask, used)))
    return min(found, key=lambda pair: pair[0])[1]


def admm_mask(W: Tensor, values: Tensor, vectors: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """The support that ADMM settles on, bool (out, in).

    Args:
        W: (out, in), with its columns scaled like G.
        values, vectors: eigenvalues (in,) and eigenvectors (in, in) of G, whose diagonal is one.
    """
    WG = W @ (vectors * values) @ vectors.T
    support = _project(W, pattern, sparsity)
    sparse, dual, rho = W * support, torch.zeros_like(W), FIRST_RHO
    kept = int(support.sum())
    new = support
    for step in range(1, STEPS + 1):
        dense = ((WG - dual + rho * sparse) @ vectors / (values + rho)) @ vectors.T
        moved = dense + dual / rho
        new = _project(moved, pattern, sparsity)
        sparse = moved * new
        dual += rho * (dense - sparse)
        if step % EVERY == 0:
            changed = int((new != support).sum()) // 2
            if changed == 0:
                break
            rho *= 1.3 if changed >= 0.1 * kept else 1.2 if changed >= 0.005 * kept else 1.1
            support = new
    return new


def _project(scores: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    return pattern.mask(scores.abs(), sparsity, "matrix")


def _fit(W: Tensor, spectrum: Spectrum, mask: Tensor) -> tuple[Tensor, float]:
    """The best weights on a mask, and the damping used."""
    if W.shape[1] <= EXACT_WIDTH:
        fit = masked_least_squares(W, spectrum.gram, mask, DAMPING)
        return fit.weight * mask, fit.damping
    return masked_conjugate(W, spectrum.damped, mask), DAMPING


METHOD = Method(
    name="alps",
    title="ALPS: ADMM, then least squares",
    paper="https://arxiv.org/abs/2406.07831",
    needs=frozenset({"gram"}),
    solve=solve,
)
