"""Least squares on a fixed support for wide rows: conjugate gradients on all rows at once."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 50
TOLERANCE = 1e-4  # of the residual, relative to that of masking


@torch.no_grad()
def masked_conjugate(
    W: Tensor,
    G: Tensor,
    mask: Tensor,
    start: Tensor | None = None,
    steps: int = STEPS,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """argmin over V, zero where `mask` is False, of tr((V - W) G (V - W)ᵀ), approached from `start`.

    Every row has its own support, so its own step sizes; the products with G are one matmul for all rows.
    Preconditioned by G's diagonal. Each step lowers the objective, so the result is never worse than the start.

    Args:
        W: (out, in). G: positive definite (in, in); an input whose diagonal is zero is left as it is.
        mask: bool (out, in), True = keep.
        start: (out, in), W itself unless given; only what the mask keeps of it is read.
        tolerance: it ends early where the residual is that small a part of what masking alone leaves.

    Returns: V (out, in) fp32.
    """
    W, G = W.float(), G.float()
    diagonal = G.diagonal()
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0)
    masked = torch.where(mask, W, 0)
    V = masked if start is None else torch.where(mask, start.float(), 0)
    residual = ((W - masked) @ G) * mask
    enough = tolerance**2 * float((residual.square() * inverse).sum())
    if start is not None:
        residual = ((W - V) @ G) * mask
    direction = residual * inverse
    product = (residual * direction).sum(1, keepdim=True)
    for _ in range(steps):
        if float(product.sum()) <= enough:
            break
        along = (direction @ G) * mask
        curvature = (direction * along).sum(1, keepdim=True)
        length = torch.where(curvature > 0, product / curvature, 0)
        V = V + length * direction
        residual = residual - length * along
        preconditioned = residual * inverse
        new = (residual * preconditioned).sum(1, keepdim=True)
        direction = preconditioned + torch.where(product > 0, new / product, 0) * direction
        product = new
    return V
