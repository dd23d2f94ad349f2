"""Least squares on a fixed support for wide rows: conjugate gradients on all rows at once."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 50
TOLERANCE = 1e-6  # of the residual, relative to where it began


def masked_conjugate(W: Tensor, G: Tensor, mask: Tensor, steps: int = STEPS) -> Tensor:
    """argmin over V, zero where `mask` is False, of tr((V - W) G (V - W)ᵀ), approached from V = W masked.

    Every row has its own support, so its own step sizes; the products with G are one matmul for all rows.
    Preconditioned by G's diagonal. Each step lowers the objective, so the result is never worse than masking.

    Args:
        W: (out, in). G: positive definite (in, in); an input whose diagonal is zero is left as it is.
        mask: bool (out, in), True = keep.

    Returns: V (out, in) fp32.
    """
    W, G = W.float(), G.float()
    diagonal = G.diagonal()
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0)
    V = W * mask
    residual = ((W - V) @ G) * mask
    direction = residual * inverse
    product = (residual * direction).sum(1, keepdim=True)
    first = float(product.sum())
    for _ in range(steps):
        along = (direction @ G) * mask
        curvature = (direction * along).sum(1, keepdim=True)
        length = torch.where(curvature > 0, product / curvature.clamp_min(1e-30), torch.zeros_like(product))
        V = V + length * direction
        residual = residual - length * along
        preconditioned = residual * inverse
        new = (residual * preconditioned).sum(1, keepdim=True)
        if float(new.sum()) <= TOLERANCE**2 * first:
            break
        direction = preconditioned + new / product.clamp_min(1e-30) * direction
        product = new
    return V
