"""Best weights on a fixed support: exact least squares from second moments.

Over V that is zero outside the support S,

    minimise  E‖y - V x - b‖²  +  λ ‖V - W_S‖²,    λ = ridge · (mean diagonal of E[x xᵀ])

where y = W x unless another target is given by its cross moments E[y xᵀ], and b is zero unless means are
given.
The ridge pulls towards the weights as they were, not towards zero: where the data says nothing (dead inputs,
few tokens) nothing changes, and masking alone, V = W_S, is never better on this objective. All matrices are
fp64; only the batched factors of `masked_least_squares` may be fp32, by the rule in `linalg.attempts`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secateur.numerics.linalg import attempts, damped, damped_cholesky, not_positive_definite, wide_dtype

RIDGE = 1e-3
CHUNK_BYTES = 2**27  # of the row systems that `masked_least_squares` holds at once


class Fit(NamedTuple):
    """A solution.

    Args:
        weight: fp32, (out, kept) for columns, (out, in) for masks.
        bias: (out,) fp32, what the Linear's bias changes by; None where no mean was given.
        damping: the ridge it ended with.
        gain: by how much E‖y - V x - b‖² fell below masking alone (with its own best b), relative to E‖W x‖²,
            or to the variance of W x where means are given.
    """

    weight: Tensor
    bias: Tensor | None
    damping: float
    gain: float


class Problem(NamedTuple):
    """E‖y - V x‖² = tr(V G Vᵀ) - 2 tr(V Tᵀ) + a constant; with means, all of it about them."""

    W: Tensor
    G: Tensor
    T: Tensor
    mean: Tensor | None = None
    target_mean: Tensor | None = None

    @classmethod
    def of(
        cls,
        W: Tensor,
        G: Tensor,
        mean: Tensor | None,
        target_cross: Tensor | None,
        target_mean: Tensor | None,
    ) -> Problem:
        wide = wide_dtype(G.device)
        W, G = W.to(G.device, wide), G.to(wide)
        T = W @ G if target_cross is None else target_cross.to(G.device, wide)
        if mean is None:
            return cls(W, G, T)
        mean = mean.to(G.device, wide)
        target_mean = W @ mean if target_mean is None else target_mean.to(G.device, wide)
        return cls(W, G - torch.outer(mean, mean), T - torch.outer(target_mean, mean), mean, target_mean)

    def fit(self, start: Tensor, step: Tensor, residual: Tensor, damping: float) -> Fit:
        """The solution start + step (out, in), where residual = T - start G."""
        V = start + step
        drop = float(2 * (step * residual).sum() - ((step @ self.G) * step).sum())
        total = float(((self.W @ self.G) * self.W).sum())
        bias = None
        if self.mean is not None and self.target_mean is not None:
            bias = (self.target_mean - V @ self.mean).float()
        return Fit(V.float(), bias, damping, drop / total if total > 0 else 0.0)


@torch.no_grad()
def least_squares_columns(
    W: Tensor,
    G: Tensor,
    keep: Tensor,
    ridge: float = RIDGE,
    *,
    mean: Tensor | None = None,
    target_cross: Tensor | None = None,
    target_mean: Tensor | None = None,
) -> Fit:
    """Best weights of a consumer whose inputs are cut down to `keep`: the refit after structured pruning.

    Args:
        W: (out, in), the weights before the cut, without bias.
        G: E[x xᵀ] (in, in) of the inputs that the cut layer will see.
        keep: bool (in,), or indices of the kept inputs in the order of the new columns.
        mean: E[x] (in,); when given, the fit also moves the bias.
        target_cross: E[y xᵀ] (out, in); W G unless given. y is without bias, too.
        target_mean: E[y] (out,); W mean unless given.

    Returns: a Fit whose weight is (out, kept).
    """
    problem = Problem.of(W, G, mean, target_cross, target_mean)
    kept = (keep.nonzero().flatten() if keep.dtype == torch.bool else keep).to(G.device)
    start = torch.zeros_like(problem.W)
    start[:, kept] = problem.W[:, kept]
    residual = problem.T - start @ problem.G
    step = torch.zeros_like(start)
    used = ridge
    if kept.numel():
        factor, used = damped_cholesky(problem.G[kept][:, kept], ridge, problem.G.dtype)
        step[:, kept] = torch.cholesky_solve(residual[:, kept].T, factor).T
    fit = problem.fit(start, step, residual, used)
    return fit._replace(weight=fit.weight[:, kept])


@torch.no_grad()
def masked_least_squares(
    W: Tensor,
    G: Tensor,
    mask: Tensor,
    ridge: float = RIDGE,
    *,
    mean: Tensor | None = None,
    target_cross: Tensor | None = None,
    target_mean: Tensor | None = None,
) -> Fit:
    """Best weights on a mask, row by row: each output has its own support, so its own system.

    The systems of many rows are gathered and factored as one batch; rows with alike counts go together.
    Work: Σ_rows kept³ / 3. Arguments as in `least_squares_columns`, with mask bool (out, in), True = keep.
    """
    problem = Problem.of(W, G, mean, target_cross, target_mean)
    mask = mask.to(G.device)
    start = torch.where(mask, problem.W, 0)
    residual = problem.T - start @ problem.G
    step = torch.zeros_like(start)
    counts = mask.sum(1)
    rows = counts.argsort(descending=True, stable=True)
    widths = counts[rows].tolist()
    kept_first = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    used, first = ridge, 0
    while first < len(rows) and widths[first] > 0:
        width = widths[first]
        chunk = rows[first : first + max(CHUNK_BYTES // (8 * width * width), 1)]
        support = kept_first[chunk, :width]
        real = torch.arange(width, device=G.device) < counts[chunk, None]
        right = residual[chunk].gather(1, support) * real
        solution, damping = _solve_supports(problem.G, support, real, right, ridge)
        step[chunk] = step[chunk].scatter(1, support, solution * real)
        used, first = max(used, damping), first + len(chunk)
    return problem.fit(start, step, residual, used)


def _solve_supports(G: Tensor, support: Tensor, real: Tensor, right: Tensor, ridge: float) -> tuple[Tensor, float]:
    """Solve G[support_r, support_r] v_r = right_r for each row r, (rows, width). Entries that are not `real`
    pad a short row; they are independent of all others."""
    pad = torch.diag_embed((~real).to(G.dtype))
    both = real[:, :, None] & real[:, None, :]
    for damping, dtype in attempts(G.shape[0], ridge, None, G.device):
        H = damped(G, damping, dtype)
        systems = H[support[:, :, None], support[:, None, :]] * both + pad.to(dtype)
        factors, failed = torch.linalg.cholesky_ex(systems)
        if not bool(failed.any()):
            return torch.cholesky_solve(right.to(dtype)[..., None], factors)[..., 0].to(G.dtype), damping
    raise not_positive_definite(G.shape[0])
