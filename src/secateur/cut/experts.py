"""Whole experts of one block: how they are scored, and what removing them leaves behind.

The tokens of a removed expert go to those that the router likes next. No Linear reads what all experts write, so
there is none to refit; the others can absorb it (`cut.merging`), and block reconstruction tunes what is left.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.calibration.walk import Block
from secateur.methods import ExpertUnits, Method
from secateur.model.anatomy import tensor_of
from secateur.model.sites import Site
from secateur.model.surgery import remove, update_heads


def score_experts(block: Block, site: Site, method: Method, seed: int) -> Tensor:
    """Importance (experts,) fp64 of each expert of a layer; `seed` is that of this site."""
    assert method.score_experts is not None
    return method.score_experts(ExpertUnits(norms_of(block.layer, site), block.routing(method.routing), seed))


@torch.no_grad()
def norms_of(layer: nn.Module, site: Site) -> Tensor:
    """The L2 norm of all parameters of each expert, (experts,) fp64 on the CPU; in fp32 one expert at a time."""
    parts = [tensor_of(layer, cut.parameter).movedim(cut.axis, 0) for cut in site.cuts]
    squares = [[float(part[unit].float().square().sum()) for part in parts] for unit in range(site.units)]
    return torch.tensor(squares, dtype=torch.float64).sum(1).sqrt()


def remove_experts(block: Block, site: Site, keep: Tensor) -> None:
    """Takes experts out of a block; it remembers which those are that are left.

    Args:
        keep: bool (experts,), True = stays.
    """
    for layer in (block.layer, *block.gradients.values()):
        remove(layer, [(site, keep)])
    update_heads(block.layer, block.streamed.checkpoint.family, block.streamed.checkpoint.head_dim)
    numbers = block.experts or tuple(range(site.units))
    block.experts = tuple(numbers[unit] for unit in keep.nonzero().flatten().tolist())
