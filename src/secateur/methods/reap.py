"""REAP: router-weighted expert activation pruning (Lasby et al. 2025, https://arxiv.org/abs/2510.13999).

    S_j = 1/|X_j| Σ_(x in X_j) g_j(x) ‖f_j(x)‖₂        X_j the tokens that are routed to expert j

What an expert adds to the stream where it is used, not how often that is. The gate values g are those that the layer
multiplies with: of the chosen experts, and divided by their sum where the architecture does that. An expert that no
token was routed to scores 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import ExpertUnits


@torch.no_grad()
def score_experts(experts: ExpertUnits) -> Tensor:
    """(experts,) fp64."""
    routing = experts.routing
    return (routing.outputs / routing.tokens.clamp_min(1)).cpu().double()


METHOD = Method.listed("reap", score_experts=score_experts)
