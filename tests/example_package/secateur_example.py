"""A method in a package of its own: |W_ij| · E|x_j|, the mean size of an input in the place of Wanda's norm."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur import Method, Moments


@torch.no_grad()
def score(W: Tensor, moments: Moments) -> Tensor:
    """(out, in) fp32."""
    return W.float().abs() * moments.mean_abs.to(W.device).float()


METHOD = Method(
    name="column_mean",
    title="Weight times mean size of its input",
    paper="an example",
    needs=frozenset({"mean_abs"}),
    score=score,
)
