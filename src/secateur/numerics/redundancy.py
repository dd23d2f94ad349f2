"""What the kept units know of the removed ones, and who of them knows it: why a unit could go.

All of it from second moments G of the inputs of the consumer W, under a Gaussian model:

    bits       I(z_u; z_kept) = ½ log2 (|G_uu| / |S_u|), S_u what is left of z_u once the kept inputs are known
    energy     tr(W_u G_uu W_uᵀ) / tr(W G Wᵀ): the unit's own part of what the consumer writes
    restored   1 - tr(W_u S_u W_uᵀ) / tr(W_u G_uu W_uᵀ): how much of that the best linear guess gives back
    shares     of what is explained: with B_k the guess's weights on kept unit k, tr(W_u B_k G_ku W_uᵀ) over the sum
               (Pratt's measure: they add up to one; where kept units correct each other, some are negative)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.numerics.least_squares import RIDGE
from secateur.numerics.linalg import damped, damped_cholesky, wide_dtype

CARRIERS = 5


class Redundancy(NamedTuple):
    """One row for each removed unit, in ascending order; all on the CPU.

    Args:
        bits, energy, restored: (removed,) fp64.
        carriers: (removed, at most CARRIERS) kept units that know most of it, the one with most first.
        shares: of each of them, fp64.
    """

    bits: Tensor
    energy: Tensor
    restored: Tensor
    predictors: Tensor
    shares: Tensor


@torch.no_grad()
def redundancy(W: Tensor, G: Tensor, keep: Tensor, width: int, ridge: float = RIDGE) -> Redundancy:
    """What is known of the units that `keep` (units,) leaves out.

    Args:
        W: consumer (out, units * width) before the cut.
        G: E[x xᵀ] of its inputs, or their covariance where a bias takes care of the means.
        width: inputs of each unit.
        ridge: damping of G; bits can't exceed ½ log2 (1 + 1 / ridge) or so for an average input.
    """
    wide = wide_dtype(G.device)
    kept_units = keep.nonzero().flatten()
    kept = keep.repeat_interleave(width).to(G.device)
    W = W.to(G.device, wide)
    factor, used = damped_cholesky(G[kept][:, kept], ridge, wide)
    H = damped(G, used, wide)
    total = float(((W @ G.to(wide)) * W).sum())
    gone = (~keep).nonzero().flatten()
    across_all = H[kept][:, ~kept]
    guesses = torch.cholesky_solve(across_all, factor)
    figures = torch.zeros(len(gone), 3, dtype=torch.float64)
    predictors, shares = [], []
    for row, unit in enumerate(gone.tolist()):
        own, columns = (slice(n * width, (n + 1) * width) for n in (unit, row))
        across, guess = across_all[:, columns], guesses[:, columns]
        inside, reads = H[own, own], W[:, own].T @ W[:, own]
        left = inside - across.T @ guess
        energy, whole, lost = (float((reads * part).sum()) for part in (G[own, own].to(wide), inside, left))
        nats = float(torch.linalg.slogdet(inside)[1] - torch.linalg.slogdet(left)[1]) / 2
        figures[row, 0] = max(nats / math.log(2), 0.0)
        figures[row, 1] = energy / total if total > 0 else 0.0
        figures[row, 2] = min(max(1 - lost / whole, 0.0), 1.0) if whole > 0 else 0.0
        given = ((guess @ reads) * across).sum(1).view(-1, width).sum(1).cpu().double()
        best = given.argsort(descending=True, stable=True)[:CARRIERS]
        predictors.append(kept_units[best])
        shares.append(given[best] / given.sum() if float(given.sum()) > 0 else torch.zeros(len(best)))
    none = torch.zeros(0, min(CARRIERS, len(kept_units)))
    return Redundancy(
        figures[:, 0],
        figures[:, 1],
        figures[:, 2],
        torch.stack(predictors) if predictors else none.long(),
        torch.stack(shares).double() if shares else none.double(),
    )
