"""Weights and inputs for the conformance suite."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.numerics.moments import Moments

EVERYTHING = frozenset({"mean", "mean_abs", "rms", "gram", "sample"})


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


def slopes(parameters: Tensor, alive: Tensor | None = None) -> dict[str, Tensor]:
    """Gradients for any parameters: they go where those go, and grow as those shrink, as those of a loss do.

    Args:
        alive: (last axis,), False where an input is always zero, and so all gradients behind it.
    """
    top = parameters.detach().float().abs().max().clamp_min(1e-30)
    part = parameters.detach().float() / top
    first = torch.cos(7 * part) / top
    if alive is not None:
        first = first * alive
    second = first.square() * (1.1 + torch.sin(5 * part))
    return {
        "gradient": first,
        "gradient_size": first.abs(),
        "fisher": second,
        "entropy_gradient": (first * part.sin()).abs(),
        "regional": second.sqrt(),
    }


def weights(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
