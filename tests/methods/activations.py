"""Weights and inputs for the conformance suite."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods import ROUTING, ExpertUnits
from secateur.numerics.moments import Moments
from secateur.numerics.routing import Routing

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
        "input_fisher": second * part.square(),
        "entropy_gradient": (first * part.sin()).abs(),
        "regional": second.sqrt(),
    }


def weights(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def routed(chosen: Tensor, gates: Tensor, norms: Tensor) -> Routing:
    """What is gathered of tokens that were routed like this; all (tokens, experts), `chosen` bool."""
    routing = Routing(chosen.shape[1], ROUTING)
    routing.see(len(chosen))
    for expert in range(chosen.shape[1]):
        own = chosen[:, expert]
        routing.add(expert, gates[own, expert], norms[own, expert])
    return routing


def choices(tokens: int, experts: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(chosen, gates, norms) of a router that likes some experts better: two of them for each token."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator) + torch.linspace(0, 1, experts)
    chosen = torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, logits.topk(2).indices, True)
    gates = logits.masked_fill(~chosen, -torch.inf).softmax(1)
    return chosen, gates, torch.rand(tokens, experts, generator=generator) * torch.arange(experts, 0, -1)


def experts_of(chosen: Tensor, gates: Tensor, norms: Tensor, seed: int = 0) -> ExpertUnits:
    sizes = torch.rand(chosen.shape[1], generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1
    return ExpertUnits(sizes, routed(chosen, gates, norms), seed)
