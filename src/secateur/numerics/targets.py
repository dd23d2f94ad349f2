"""What a layer is asked to reproduce. Any solver can be used with any target.

    pruned    its own output on the pruned model's inputs:  y = W x
    dense     the untouched model's output, from the pruned model's inputs:  y = W x_dense
    residual  the same, and for Linears that write to the residual stream also what that stream lacks
              already:  y = W x_dense + (residual_dense - residual)

The least-squares problem with target y has the same minimiser on every support as the problem
tr((V - W*) G (V - W*)ᵀ) with W* = E[y xᵀ] G⁻¹, its solution without any zeros. So a target is nothing but other
weights to start from: `retarget` gives W*, and a solver that knows nothing of targets does the rest.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from secateur.numerics.least_squares import least_squares_columns
from secateur.numerics.moments import Moments

Target = Literal["pruned", "dense", "residual"]

NEEDS: dict[str, frozenset[str]] = {
    "pruned": frozenset(),
    "dense": frozenset({"gram", "mean", "cross"}),
    "residual": frozenset({"gram", "mean", "cross", "drift"}),
}
RIDGE = 1e-3


def retarget(W: Tensor, moments: Moments, target: Target, dense: Tensor) -> Tensor:
    """W* (out, in) fp32 for a target; W itself for `pruned`.

    The ridge pulls towards W, so where the two streams agree nothing changes.

    Args:
        dense: the weight (out, target_features) that gives the target from the dense model's inputs; W itself
            unless inputs of it were cut before.
    """
    if target == "pruned" or moments.n == 0:
        return W
    everything = torch.ones(W.shape[1], dtype=torch.bool, device=W.device)
    cross = dense.float() @ moments.cross.to(W.device)
    if "drift" in moments.needs:
        cross = cross + moments.drift.to(W.device)
    return least_squares_columns(W, moments.gram.to(W.device), everything, RIDGE, target_cross=cross).weight


def best_bias(V: Tensor, bias: Tensor, moments: Moments, dense: Tensor, dense_bias: Tensor | None) -> Tensor:
    """What `bias` must change by, (out,), so that the mean output of V x + bias is the target's.

    Args:
        dense, dense_bias: weight and bias that give the target from the dense model's inputs.
    """
    wanted = dense.float() @ moments.target_mean.to(V.device)
    if dense_bias is not None:
        wanted = wanted + dense_bias.float()
    if "drift" in moments.needs:
        wanted = wanted + moments.drift_mean.to(V.device)
    return wanted - V.float() @ moments.mean.to(V.device) - bias.float()
