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


@torch.no_grad()
def solve(W: Tensor, moments: Moments, pattern: Pattern, sparsity: float) -> Solution:
    """W (out, in) pruned to the pattern; fp32. Needs the Gram matrix of the inputs."""
    pattern.validate(W.shape[1], "the weight")
    gram = moments.gram.to(W.device)
    H = damped(gram, DAMPING, torch.float32)
    scale = H.diagonal().rsqrt()
    scaled = H * scale[:, None] * scale[None, :]
    start = W.float() / scale * live_inputs(gram)  # what reads only zeros goes first
    first = _project(start, pattern, sparsity)
    mask = admm_mask(start, scaled, pattern, sparsity)
    fits = [_fit(W, gram, m) for m in (mask, first)]
    errors = [quadratic_error(W.float(), weight, gram)[0] for weight, _ in fits]
    best = 0 if errors[0] <= errors[1] else 1
    weight, used = fits[best]
    return Solution(weight, (mask, first)[best], used)


def admm_mask(W: Tensor, G: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """The support that ADMM settles on, bool (out, in). W (out, in) and G (in, in) with unit diagonal."""
    values, vectors = torch.linalg.eigh(G)
    values = values.clamp_min(0)
    WG = W @ G
    support = _project(W, pattern, sparsity)
    sparse, dual, rho = W * support, torch.zeros_like(W), FIRST_RHO
    kept = int(support.sum())
    for step in range(STEPS):
        target = (WG - dual + rho * sparse) @ vectors
        dense = (target / (values + rho)) @ vectors.T
        moved = dense + dual / rho
        new = _project(moved, pattern, sparsity)
        sparse = moved * new
        dual = dual + rho * (dense - sparse)
        if step % EVERY == EVERY - 1:
            changed = int((new != support).sum()) // 2
            if changed == 0:
                break
            rho *= 1.3 if changed >= 0.1 * kept else 1.2 if changed >= 0.005 * kept else 1.1
            support = new
    return new


def _project(scores: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    return pattern.mask(scores.abs(), sparsity, "matrix")


def _fit(W: Tensor, gram: Tensor, mask: Tensor) -> tuple[Tensor, float]:
    """The best weights on a mask, and the damping used."""
    if W.shape[1] <= EXACT_WIDTH:
        fit = masked_least_squares(W, gram, mask, DAMPING)
        return fit.weight * mask, fit.damping
    return masked_conjugate(W, damped(gram, DAMPING, torch.float32), mask), DAMPING


METHOD = Method(
    name="alps",
    title="ALPS: ADMM, then least squares",
    paper="https://arxiv.org/abs/2406.07831",
    needs=frozenset({"gram"}),
    solve=solve,
)
