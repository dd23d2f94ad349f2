"""SparseGPT: prune column by column and pass the errors on (Frantar & Alistarh 2023,
https://arxiv.org/abs/2301.00774).

With H = XᵀX / n + damping and U upper, UᵀU = H⁻¹ (Algorithm 1): weights are scored by (W_ij / U_jj)²; the
error of a removed weight, e_ij = W_ij / U_jj, is spread over the columns to its right,
W_i,j+1: -= e_ij U_j,j+1:. Free patterns choose their mask for each block of 128 columns when its turn comes,
over all rows together; N:M when the turn of its M columns comes.

Deviations: removed counts are exact over the whole matrix (rounding is carried from block to block); weights
of dead inputs score zero but are not cleared unless chosen. Errors are gathered from the left when a block's
turn comes instead of pushed to the right after each block: the same sums, but W is read and written once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method, Solution
from secateur.numerics.linalg import DAMPING, inverse_upper, live_inputs
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import Pattern, check_scores, keep_best, removed_count

BLOCK = 128  # columns that share one choice of mask (the paper's)
STRIPE = 32  # columns inside a block between two matmuls; sets speed only


@torch.no_grad()
def solve(
    W: Tensor,
    moments: Moments,
    pattern: Pattern,
    sparsity: float,
    *,
    damping: float = DAMPING,
    block: int = BLOCK,
) -> Solution:
    """W (out, in) pruned and updated; fp32. Needs the Gram matrix of the inputs.

    Raises InputError where N:M does not divide `in`, SecateurError where no damping makes H invertible.
    """
    pattern.validate(W.shape[1], "the weight")
    stripe = pattern.of or STRIPE
    block = -(-block // stripe) * stripe

    def prepare() -> tuple[Tensor, float, Tensor]:
        gram = moments.gram.to(W.device)
        return *inverse_upper(gram, damping), live_inputs(gram)

    U, used, live = moments.once(f"sparsegpt {damping} {W.device}", prepare)
    sweep = _Sweep(W, U, live)
    for start in range(0, W.shape[1], block):
        stop = min(start + block, W.shape[1])
        sweep.gather(0, start, start, stop)
        if pattern.free:
            sweep.choose(start, stop, sparsity)
        for left in range(start, stop, stripe):
            right = min(left + stripe, stop)
            sweep.gather(start, left, left, right)
            if not pattern.free:
                sweep.mask[left:right] = pattern.grouped(sweep.scores(left, right).T, check=False).T
            sweep.eliminate(left, right)
    check_scores(sweep.weight)  # what was NaN anywhere still is
    return Solution(sweep.weight.T.contiguous(), sweep.mask.T.contiguous(), used)


class _Sweep:
    """The state of one pass. Everything is transposed, (in, out), so that a column of W is contiguous."""

    def __init__(self, W: Tensor, U: Tensor, live: Tensor) -> None:
        self.weight = W.T.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        self.error = torch.zeros_like(self.weight)
        self.mask = torch.ones_like(self.weight, dtype=torch.bool)
        self.U = U
        # Weights of dead inputs score zero: they go first, and nothing depends on them.
        self.saliency = live * U.diagonal().reciprocal()
        self.inverse_pivots = U.diagonal().reciprocal().unbind()
        self.removed = 0

    def gather(self, first: int, last: int, start: int, stop: int) -> None:
        """Apply the errors of columns [first, last) to columns [start, stop)."""
        if last > first:
            self.weight[start:stop].addmm_(self.U[first:last, start:stop].T, self.error[first:last], alpha=-1)

    def scores(self, start: int, stop: int) -> Tensor:
        return (self.weight[start:stop] * self.saliency[start:stop, None]).square_()

    def choose(self, start: int, stop: int, sparsity: float) -> None:
        """The free mask of one block: over all its rows and columns, counts exact up to here."""
        due = removed_count(stop * self.weight.shape[1], sparsity) - self.removed
        self.removed += due
        self.mask[start:stop] = keep_best(self.scores(start, stop).flatten(), due, check=False).view(stop - start, -1)

    def eliminate(self, start: int, stop: int) -> None:
        """Zero the masked entries of columns [start, stop) one column at a time and note their errors."""
        gone = (~self.mask[start:stop]).float()
        for i in range(start, stop):
            column = self.weight[i]
            if i > start:
                column.addmv_(self.error[start:i].T, self.U[start:i, i], alpha=-1)
            torch.mul(column, gone[i - start], out=self.error[i])
            column.sub_(self.error[i])
            self.error[i] *= self.inverse_pivots[i]


METHOD = Method.listed("sparsegpt", solve=solve)
