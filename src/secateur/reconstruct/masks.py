"""What of a block is zero while it is tuned.

    kept      what was zero before; the mask is the method's
    gradual   nothing at first; then, while everything else is tuned, more and more goes, on Zhu & Gupta's cubic
              schedule (https://arxiv.org/abs/1710.01878, equation 1): of weights always those with the least
              |W_ij| rms_j at that moment (Wanda's score, of the weights and inputs as they are by then), of units
              the ones that were chosen, the least important first

What goes while the block adapts to it is missed less than what goes at once and is adapted to afterwards. Nothing
comes back: what has gone is zero, and zeros have the least score.

Each holds a copy of the layer in fp32, the one that is tuned: steps of a hundredth are lost in bf16.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.calibration.walk import Block
from secateur.model.linears import Linear, linears_of
from secateur.model.sites import Site
from secateur.model.surgery import remove, update_heads, zero
from secateur.numerics.patterns import Pattern
from secateur.numerics.support import keep_only, support_of
from secateur.system import accelerator

RAMP = 0.6  # of all steps, after which everything has gone that should
UPDATES = 24  # of what is zero, evenly over the ramp
LOOK_AT = 2  # batches of each rank whose inputs weights are chosen by


def in_fp32(layer: nn.Module) -> nn.Module:
    """A copy that can be tuned."""
    return copy.deepcopy(layer).float().requires_grad_(True)


class Kept:
    """The zeros of single weights that a block has."""

    def __init__(self, block: Block) -> None:
        self.layer = in_fp32(block.layer)
        linears = linears_of(self.layer, block.streamed.checkpoint.family)
        self._kept = [(linear, linear.stored != 0) for linear in linears]

    settled = True

    def work_on(self, names: frozenset[str]) -> None:
        """The parameters that are tuned from now on."""

    def advance(self, part: float, block: Block) -> None:
        """Decides what is zero when `part` of all steps is over."""

    @torch.no_grad()
    def hold(self) -> None:
        """Zeroes what should be zero."""
        for linear, kept in self._kept:
            keep_only(linear.stored, kept)

    def finish(self) -> None:
        """Gives the layer the shape that the cut block has."""


class Gradual(ABC):
    """What `GradualWeights` and `GradualUnits` share: when the next share goes."""

    def __init__(self, block: Block) -> None:
        self.layer = in_fp32(block.layer)
        self._updates = 0
        self._names = frozenset(name for name, _ in self.layer.named_parameters())

    @property
    def settled(self) -> bool:
        """Whether everything has gone that should from what is tuned now."""
        return self._updates == UPDATES

    def work_on(self, names: frozenset[str]) -> None:
        """The parameters that are tuned, and lose something, from now on; what has gone from others stays gone."""
        self._updates, self._names = 0, names

    def advance(self, part: float, block: Block) -> None:
        # Some goes at once: without an error there's nothing to learn from.
        due = min(UPDATES, math.ceil(part / RAMP * UPDATES))
        if due > self._updates:
            self._updates = due
            self._choose(1 - (1 - due / UPDATES) ** 3, block)

    @abstractmethod
    def _choose(self, share: float, block: Block) -> None:
        """Decides what is zero when `share` of all that goes has gone."""

    @abstractmethod
    def hold(self) -> None:
        """Zeroes what should be zero."""

    @abstractmethod
    def finish(self) -> None:
        """Gives the layer the shape that the cut block has."""


class GradualWeights(Gradual):
    """Zeros of single weights.

    Args:
        block: as it is before any weight goes.
        pattern, sparsity: what is asked of each Linear in the end; the sparsity by the Linear's name.
    """

    def __init__(self, block: Block, pattern: Pattern, sparsity: Callable[[str], float]) -> None:
        super().__init__(block)
        self._pattern, self._sparsity = pattern, sparsity
        self._kept: dict[str, tuple[Linear, Tensor]] = {}

    @torch.no_grad()
    def _choose(self, share: float, block: Block) -> None:
        own, device = replace(block, layer=self.layer), block.streamed.device
        half = block.streamed.dtype != torch.float32 or accelerator.multiplies_bf16(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            every = -(-len(block.stream.batches) // LOOK_AT) or 1
            linears = [linear for linear in own.linears if linear.parameter_name in self._names]
            found = own.moments([linear.source for linear in linears], frozenset({"rms"}), every)
        for linear in linears:
            scores = linear.weight.abs() * found[linear.source].rms
            self._kept[linear.name] = linear, self._pattern.partial(scores, self._sparsity(linear.name), share)

    @torch.no_grad()
    def hold(self) -> None:
        for linear, kept in self._kept.values():
            keep_only(linear.stored, kept)

    def finish(self) -> None:
        """Zeros stay where they are."""


class GradualUnits(Gradual):
    """Units that go one after the other.

    Args:
        block: as it is before any unit goes.
    """

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        self._checkpoint = block.streamed.checkpoint
        every = linears_of(self.layer, self._checkpoint.family)
        self._zeros = [(linear, mask) for linear in every if (mask := support_of(linear.stored)) is not None]
        self._orders: list[tuple[Site, list[int]]] = []
        self._masks: dict[str, tuple[Site, Tensor]] = {}

    def take(self, site: Site, keep: Iterable[int], scores: tuple[float, ...] | None) -> None:
        """What of a site shall go in the end; without scores the lower numbers go first."""
        gone = sorted(set(range(site.units)) - set(keep))
        self._orders.append((site, sorted(gone, key=lambda unit: scores[unit]) if scores else gone))

    def _choose(self, share: float, block: Block) -> None:
        for site, order in self._orders:
            if self._names.isdisjoint(cut.parameter for cut in site.cuts):
                continue
            mask = torch.ones(site.units, dtype=torch.bool)
            mask[order[: math.floor(share * len(order) + 0.5)]] = False
            self._masks[site.name] = site, mask

    def hold(self) -> None:
        for site, mask in self._masks.values():
            zero(self.layer, site, mask)
        with torch.no_grad():
            for linear, mask in self._zeros:  # of an earlier pruning
                keep_only(linear.stored, mask)

    def finish(self) -> None:
        self._zeros = []
        remove(self.layer, list(self._masks.values()))
        update_heads(self.layer, self._checkpoint.family, self._checkpoint.head_dim)
