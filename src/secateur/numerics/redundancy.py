"""What the kept units know of the removed ones, and who of them knows it: why a unit could go.

All of it from second moments G of the inputs of the consumer W, under a Gaussian model:

    bits       I(z_u; z_kept) = ½ log2 (|G_uu| / |S_u|), S_u what is left of z_u once the kept inputs are known
    energy     tr(W_u G_uu W_uᵀ) / tr(W G Wᵀ): the unit's own part of what the consumer writes
    restored   1 - tr(W_u S_u W_uᵀ) / tr(W_u G_uu W_uᵀ): how much of that the best linear guess gives back
    shares     of what is explained: with B_k the guess's weights on kept unit k, p_k = tr(W_u B_k G_ku W_uᵀ) over the
               sum of the positive ones. Over the sum of all it would be Pratt's measure; where kept units correct
               each other, some p_k are negative, and others would come to more than the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.numerics.least_squares import RIDGE
from secateur.numerics.linalg import damped, damped_cholesky, wide_dtype

CARRIERS = 5
AT_ONCE = 2**24  # numbers of the removed units that are looked at together; bounds memory only


class Redundancy(NamedTuple):
    """One row for each removed unit, in ascending order; all on the CPU.

    Args:
        bits, energy, restored: (removed,) fp64.
        carriers: (removed, at most CARRIERS) kept units that know most of it, the one with most first.
        shares: of each of them, fp64, from 0 to 1; 0 where it only corrects others.
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
    across = H[kept][:, ~kept]
    guesses = torch.cholesky_solve(across, factor)
    found = []
    for units in _pieces(len(gone), across.numel()):
        columns = slice(units.start * width, units.stop * width)
        own = gone[units].to(G.device)[:, None] * width + torch.arange(width, device=G.device)
        found.append(_explained(W, G, H, own, across[:, columns], guesses[:, columns], total))
    if not found:
        none = torch.zeros(0, dtype=torch.float64)
        pairs = torch.zeros(0, min(CARRIERS, len(kept_units)), dtype=torch.float64)
        return Redundancy(none, none, none, pairs.long(), pairs)
    bits, energy, restored, best, shares = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return Redundancy(bits.double(), energy.double(), restored.double(), kept_units[best], shares.double())


def _pieces(units: int, numbers: int) -> Iterator[slice]:
    """Removed units that are looked at together, of which all take so many numbers."""
    some = max(1, units * AT_ONCE // max(1, numbers))
    return (slice(first, min(first + some, units)) for first in range(0, units, some))


def _explained(
    W: Tensor, G: Tensor, H: Tensor, own: Tensor, across: Tensor, guess: Tensor, total: float
) -> tuple[Tensor, ...]:
    """(bits, energy, restored), each (units,), then the kept units that know most and their shares, (units, best).

    Args:
        own: the units' inputs, (units, width).
        across, guess: G_ku and the guess's weights, (kept inputs, units * width).
    """
    count, width = own.shape
    across, guess = (part.unflatten(1, (count, width)).movedim(0, 1) for part in (across, guess))
    columns = W[:, own].movedim(1, 0)
    rows, others = own[:, :, None], own[:, None, :]
    reads, inside = columns.mT @ columns, H[rows, others]
    left = inside - across.mT @ guess
    energy, whole, lost = ((reads * part).sum((1, 2)) for part in (G[rows, others].to(W.dtype), inside, left))
    nats = (torch.linalg.slogdet(inside)[1] - torch.linalg.slogdet(left)[1]) / 2
    restored = torch.where(whole > 0, (1 - lost / whole).clamp(0, 1), 0)
    given = ((guess @ reads) * across).sum(2).unflatten(1, (-1, width)).sum(2)
    share = energy / total if total > 0 else torch.zeros_like(energy)
    best = given.argsort(dim=1, descending=True, stable=True)[:, :CARRIERS]
    given = given.clamp_min(0)
    every = given.sum(1, keepdim=True)
    shares = torch.where(every > 0, given.gather(1, best) / every, 0.0)
    return (nats / math.log(2)).clamp_min(0), share, restored, best, shares
