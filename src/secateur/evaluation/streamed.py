"""Perplexity of a model that need not fit in memory: block by block from disk, by the same walk that prunes."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from secateur.calibration.activations import Budget
from secateur.calibration.depth import loss_without
from secateur.model.checkpoint import Checkpoint
from secateur.model.outer import Outer


def streamed_perplexity(
    folder: str | Path,
    tokens: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    budget: Budget | None = None,
    work: Path | None = None,
) -> float:
    """exp(mean negative log likelihood) of token sequences (n, length), each predicted from its own start."""
    outer = Outer(Checkpoint.open(folder), device, dtype)
    return math.exp(loss_without(outer, tokens, [frozenset()], budget, work)[0])
