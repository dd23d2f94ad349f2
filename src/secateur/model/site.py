"""What a site is, and what a cut: records that know no architecture."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import nn

from secateur.model.anatomy import tensor_of


@dataclass(frozen=True)
class Cut:
    """A slice of one parameter: unit u owns entries [offset + u*width, offset + (u+1)*width) of `axis`.

    Args:
        parameter: path below the layer, e.g. `mlp.gate_proj.weight`.
        axis: of the parameter as it is stored.
        width: entries of that axis for each unit.
        offset: where unit 0 begins.
        expert: index on axis 0 of a 3-D expert parameter; `axis` then counts the axes behind it.
        rescale: the parameter is an RMS-norm gain over all units, so removing units from it must
            multiply the rest by sqrt(units / kept) to leave their outputs as they were with zeros (up to
            the norm's epsilon, which can't be scaled per layer).
        run, stride: where units lie in runs (query heads among the keys and values of their groups): units of one
            run, and entries from the begin of one to the begin of the next; 0 = all units are one run.
    """

    parameter: str
    axis: int
    width: int = 1
    offset: int = 0
    expert: int | None = None
    rescale: bool = False
    run: int = 0
    stride: int = 0

    def spans(self, units: int) -> list[tuple[int, slice]]:
        """(offset, units) of each run; all units are one run unless it's said otherwise."""
        run = self.run or units
        return [
            (self.offset + number * self.stride, slice(first, first + run))
            for number, first in enumerate(range(0, units, run))
        ]


@dataclass(frozen=True)
class Site:
    """A set of equal units of one layer that can be removed: channels, query heads, KV groups, experts, a sub-block.

    Args:
        kind: what a unit is, see `site_kinds.KINDS`.
        layer: index of the decoder layer.
        units: how many there are.
        cuts: the parameter slices that the units own.
        consumer: path of the Linear that consumes the units; `mlp.experts.down_proj[3]` for expert 3. Whole experts
            are consumed by none: for them it's the parameter that writes to the stream.
        width: inputs of the consumer per unit.
        params_per_unit: entries of all parameters that one unit owns.
        groups: units come in this many equal runs, and each run must keep the same number (query heads
            inside their KV groups).
        label: tells it from others of its kind in a layer.
        expert: the one whose channels these are; None outside of experts.
        multiple: a cut must keep a multiple of this many units.
        least: a cut must keep this many units or more (experts: as many as a token takes).
        by_head: the layer is handed something for each of these heads, see `anatomy.Units`.
    """

    kind: str
    layer: int
    units: int
    cuts: tuple[Cut, ...]
    consumer: str
    width: int
    params_per_unit: int
    groups: int = 1
    expert: int | None = None
    multiple: int = 1
    least: int = 1
    label: str = ""
    by_head: bool = False

    @property
    def reader(self) -> str:
        """The old name of `consumer`; it goes with the next release."""
        warnings.warn("Site.reader is called Site.consumer now", DeprecationWarning, stacklevel=2)
        return self.consumer

    @property
    def place(self) -> tuple[str, int | None, str]:
        """What tells it from the others of its layer, whatever number the layer has."""
        return self.kind, self.expert, self.label

    @property
    def name(self) -> str:
        """As plans name it: `layers.3.channel`, or `layers.3.channel[5]` for the channels of expert 5."""
        suffix = f"[{self.label}]" if self.label else ("" if self.expert is None else f"[{self.expert}]")
        return f"layers.{self.layer}.{self.kind}{suffix}"


def make_site(
    kind: str,
    layer: nn.Module,
    index: int,
    units: int,
    cuts: tuple[Cut, ...],
    consumer: str,
    width: int,
    groups: int = 1,
    expert: int | None = None,
) -> Site:
    """Makes the record; the entries that a unit owns are counted from the layer's shapes."""
    params = sum(_entries(tensor_of(layer, c.parameter), c) for c in cuts)
    return Site(kind, index, units, cuts, consumer, width, params, groups, expert)


def _entries(parameter: torch.Tensor, cut: Cut) -> int:
    shape = list(parameter.shape[1:] if cut.expert is not None else parameter.shape)
    shape[cut.axis] = cut.width
    return int(torch.Size(shape).numel())
