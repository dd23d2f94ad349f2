"""What a layer is asked to reproduce. Any solver can be used with any target.

    pruned    its own output on the pruned model's inputs:  y = W x
    dense     the untouched model's output, from the pruned model's inputs:  y = W x_dense
    residual  the same, and for Linears that write to the residual stream also what that stream lacks
              already:  y = W x_dense + (residual_dense - residual)

The least-squares problem with target y has the same minimiser on every support as the problem
tr((V - W*) G (V - W*)ᵀ) with W* = E[y xᵀ] G⁻¹, its solution without any zeros. So a target is nothing but other
weights to start from: `retarget` gives W*, and a solver that knows nothing of targets does the rest. Where a bias
may move, all of it is about the means: the bias takes care of those.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from secateur.numerics.linalg import damped_cholesky, quadratic_error, wide_dtype
from secateur.numerics.moments import Moments

Target = Literal["pruned", "dense", "residual"]

NEEDS: dict[str, frozenset[str]] = {
    "pruned": frozenset(),
    "dense": frozenset({"gram", "mean", "cross"}),
    "residual": frozenset({"gram", "mean", "cross", "drift"}),
}
# What pulls towards the weights as they are, in mean squares of the inputs. With less, a repair learns the
# calibration text by heart, and with few tokens for each input its noise (docs/quality.md).
RIDGE = 0.1
NOISE = 5.0  # times inputs a token


@torch.no_grad()
def retarget(W: Tensor, moments: Moments, target: Target, dense: Tensor, biased: bool) -> tuple[Tensor, Moments]:
    """(W* (out, in) fp32 for a target, the moments to solve with); both as given for `pruned`.

    The ridge, `ridge_of` times the mean square of the inputs, pulls towards W: where the two streams agree, or where
    the data says nothing, nothing changes.

    Args:
        W: (out, in), the weights now.
        moments: with `NEEDS[target]`.
        dense: the weight (out, target_features) that gives the target from the dense model's inputs; W itself
            unless inputs of it were cut before.
        biased: the Linear has a bias, which `best_bias` sets when V is there.
    """
    if target == "pruned" or moments.n == 0:
        return W, moments
    if biased:
        moments = moments.once("centred", moments.centred)
    wide = wide_dtype(W.device)

    def prepare() -> tuple[Tensor, Tensor]:
        G = moments.gram.to(W.device, wide)
        return G, damped_cholesky(G, ridge_of(moments), wide)[0]

    # fp64: what W lacks is a small difference of large numbers.
    G, factor = moments.once(f"retarget {W.device}", prepare)
    lacks = dense.to(W.device, wide) @ moments.cross.to(W.device, wide) - W.to(wide) @ G
    if "drift" in moments.needs:
        lacks += moments.drift.to(W.device, wide)
    return (W.to(wide) + torch.cholesky_solve(lacks.T, factor).T).float(), moments


def ridge_of(moments: Moments) -> float:
    """The ridge of `retarget`, in mean squares of the inputs: more, up to 1, the fewer tokens each input has."""
    return min(RIDGE + NOISE * moments.features / moments.n, 1.0)


def best_bias(V: Tensor, bias: Tensor, moments: Moments, dense: Tensor, dense_bias: Tensor | None) -> Tensor:
    """What `bias` must change by, (out,) fp32, so that the mean output of V x + bias is the target's.

    Args:
        V: (out, in), the weights as solved.
        moments: not centred, with `NEEDS` of the target.
        dense, dense_bias: weight and bias that give the target from the dense model's inputs.
    """
    if moments.n == 0:
        return torch.zeros_like(bias, dtype=torch.float32)
    wide = wide_dtype(V.device)
    wanted = dense.to(V.device, wide) @ moments.target_mean.to(V.device, wide)
    if dense_bias is not None:
        wanted = wanted + dense_bias.to(wide)
    if "drift" in moments.needs:
        wanted = wanted + moments.drift_mean.to(V.device, wide)
    return (wanted - V.to(wide) @ moments.mean.to(V.device, wide) - bias.to(wide)).float()


def relative_error(W: Tensor, V: Tensor, moments: Moments, biased: bool) -> float:
    """E|W x - V x - b|² / E|W x|², with the best b for a biased Linear (what is left about the means), else 0."""
    if not biased:
        return quadratic_error(W, V, moments.gram)[1]
    absolute = quadratic_error(W, V, moments.covariance)[0]
    total = quadratic_error(W, torch.zeros_like(W), moments.gram)[0]
    return absolute / total if total > 0 else 0.0
