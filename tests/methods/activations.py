"""Weights and inputs for the conformance suite."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.numerics.moments import Moments

EVERYTHING = frozenset({"mean", "rms", "gram"})


def gathered(x: Tensor, needs: frozenset[str] = EVERYTHING) -> Moments:
    moments = Moments(x.shape[-1], needs)
    moments.update(x)
    return moments


def inputs(tokens: int, features: int, seed: int = 0) -> Tensor:
    """Correlated inputs of uneven size, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(features, features, generator=generator) / features**0.5 + torch.eye(features)
    sizes = torch.rand(features, generator=generator) * 2 + 0.1
    return torch.randn(tokens, features, generator=generator) @ mix * sizes


def weights(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
