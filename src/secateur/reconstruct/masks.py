"""Which weights of a block are zero while it is tuned.

    kept      those that were zero before; the mask is the method's
    gradual   none at first; then, while the other weights are tuned, more and more go: always those with the least
              |W_ij| rms_j at that moment (Wanda's score, of the weights and inputs as they are by then), on Zhu &
              Gupta's cubic schedule (https://arxiv.org/abs/1710.01878, equation 1)

A mask that is found while the block adapts to it is better than one that is chosen at once and adapted to
afterwards. No weight comes back: what has gone is zero, and zeros have the least score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from secateur.calibration.walk import Block
from secateur.model.linears import Linear
from secateur.numerics.patterns import Pattern

RAMP = 0.6  # of all steps, after which the mask is complete
UPDATES = 24  # of the mask, evenly over the ramp
LOOK_AT = 2  # batches of each rank whose inputs a mask is chosen by


Masks = list[tuple[Linear, Tensor]]


@torch.no_grad()
def apply(masks: Masks) -> None:
    """Zeroes what the masks (out, in), True = keep, don't keep."""
    for linear, mask in masks:
        linear.stored.mul_(mask)


class Kept:
    """The zeros that a block has."""

    def __init__(self, block: Block) -> None:
        self._masks = [(linear, linear.stored != 0) for linear in block.linears]

    def at(self, part: float, block: Block) -> Masks:
        return self._masks

    @property
    def settled(self) -> bool:
        return True


class Gradual:
    """Zeros that come bit by bit.

    Args:
        layer: as it is before any weight goes.
        pattern, sparsity: what is asked of each Linear in the end; the sparsity by the Linear's name.
    """

    def __init__(self, layer: nn.Module, pattern: Pattern, sparsity: Callable[[str], float]) -> None:
        self._start = {name: p.detach().clone() for name, p in layer.named_parameters()}
        self._pattern, self._sparsity = pattern, sparsity
        self._updates = 0
        self._masks: Masks = []

    def begin(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Puts the weights without zeros in place."""
        for name, p in parameters.items():
            p.data = self._start[name].to(p.device, p.dtype, copy=True)

    def at(self, part: float, block: Block) -> Masks:
        """The masks when `part` of all steps is over."""
        # Some go at once: without an error there's nothing to learn from.
        due = min(UPDATES, math.ceil(part / RAMP * UPDATES))
        if due > self._updates:
            self._updates = due
            self._masks = self._choose(1 - (1 - due / UPDATES) ** 3, block)
        return self._masks

    @property
    def settled(self) -> bool:
        """Whether all has gone that should."""
        return self._updates == UPDATES

    @torch.no_grad()
    def _choose(self, share: float, block: Block) -> Masks:
        device, linears = block.outer.device, block.linears
        half = block.outer.dtype != torch.float32 or device.type == "cuda"
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            every = -(-len(block.stream.batches) // LOOK_AT)
            found = block.moments([linear.source for linear in linears], frozenset({"rms"}), every)
        return [
            (
                linear,
                self._pattern.partial(
                    linear.weight.abs() * found[linear.source].rms, self._sparsity(linear.name), share
                ),
            )
            for linear in linears
        ]
