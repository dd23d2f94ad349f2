"""How often an expert is chosen: the share of all tokens that are routed to it (SEER-MoE, Muzio et al. 2024,
https://arxiv.org/abs/2404.05089, its count of activations without the soft variant).

It costs a forward pass up to the routers, and says nothing of what an expert does with its tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import ExpertUnits


@torch.no_grad()
def score_experts(experts: ExpertUnits) -> Tensor:
    """(experts,) fp64 in [0, 1]."""
    routing = experts.routing
    return routing.tokens.cpu().double() / max(1, routing.seen)


METHOD = Method.listed("expert_frequency", score_experts=score_experts)
