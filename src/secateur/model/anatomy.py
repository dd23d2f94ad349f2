"""What a detected layer is made of: its matrices in the order in which data reaches them, and its units.

A unit of an inner width (a channel, a head) owns entries of several parameters: rows of those that write it, columns
of the one that reads it, entries of norms and convolutions between them. How an axis is laid out is said in segments:

    Segment("head", (Item("head", 64),))                                        64 entries for each head
    Segment("group", (Item("head", 64), Item("group", 64), Item("group", 64)))  for each KV group: its heads' queries,
                                                                                then its key, then its value
    Segment("once", (Item("fixed", 32),))                                       32 entries that no unit owns

A channel is a head of width 1. Counts of heads and groups are read from the shapes that a layer has now, so the same
description is right before and after a cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

Level = Literal["head", "group", "fixed"]
Times = Literal["head", "group", "once"]
Form = tuple[int, int, int]  # so many times the heads, the groups, and this many more


@dataclass(frozen=True)
class Item:
    """`width` entries that belong to a head, to a group, or to no unit."""

    level: Level
    width: int


@dataclass(frozen=True)
class Segment:
    """Items one behind the other, for each head, for each group, or once. In a segment for each group an item of a
    head stands for each of that group's heads."""

    times: Times
    items: tuple[Item, ...]

    @property
    def form(self) -> Form:
        """The segment's length as a function of the counts."""
        heads = sum(item.width for item in self.items if item.level == "head")
        rest = sum(item.width for item in self.items if item.level != "head")
        return (heads, rest, 0) if self.times != "once" else (0, 0, heads + rest)


@dataclass(frozen=True)
class Owned:
    """An axis of a parameter (or of a buffer) that units own entries of.

    Args:
        rescale: it's the gain of an RMS norm over all units, see `sites.Cut`.
        epsilon: attribute of that norm's module, and what it is times the length of the axis: over fewer entries the
            mean of the squares is larger, and so must be what is added to it.
    """

    parameter: str
    axis: int
    segments: tuple[Segment, ...]
    rescale: bool = False
    epsilon: tuple[str, float] | None = None

    @property
    def form(self) -> Form:
        a, b, c = (sum(part) for part in zip(*(segment.form for segment in self.segments), strict=True))
        return a, b, c


@dataclass(frozen=True)
class Size:
    """An attribute of a module that states a width or a count; `form` None = heads of each group."""

    module: str
    name: str
    form: Form | None


@dataclass(frozen=True)
class Units:
    """The units that one Linear reads.

    Args:
        kind: channels, heads (of attention, of a state-space layer), or ranks of a latent that heads are made of.
        label: tells it from others of its kind in a layer; the main one has none.
        consumer: the Linear; `width` of its inputs belong to each head.
        grouped: heads come in groups that share what they read.
        shared_kv: one group serves all heads.
        kinds: of sites that have been proved.
        runs: heads lie in so many runs, a number of the class's own (CodeGen), and each keeps equally many.
        by_head: arguments of the layer that have entries for every head of the model (slopes), and the axis; the
            model goes on making them for all.
    """

    kind: Literal["channel", "head", "latent"]
    label: str
    consumer: str
    width: int
    owned: tuple[Owned, ...]
    sizes: tuple[Size, ...] = ()
    grouped: bool = False
    shared_kv: bool = False
    kinds: tuple[str, ...] = ("channel", "query_head", "kv_group")
    runs: int = 0
    by_head: tuple[tuple[str, int], ...] = ()

    def counts(self, layer: nn.Module) -> tuple[int, int]:
        """(heads, groups) of a layer as it is; without groups each head is its own."""
        heads = length_of(layer, self.owned[0]) // self.width
        if self.shared_kv or self.runs:
            return heads, self.runs or 1
        for owned in self.owned if self.grouped else ():
            a, b, c = owned.form
            if b:
                return heads, (length_of(layer, owned) - a * heads - c) // b
        return heads, heads

    def resize(self, layer: nn.Module) -> None:
        """Makes the sizes that the layer's modules state agree with its shapes."""
        heads, groups = self.counts(layer)
        for size in self.sizes:
            module = layer.get_submodule(size.module)
            setattr(module, size.name, value_of(size.form, heads, groups))
        for owned in self.owned:
            if owned.epsilon is not None:
                name, total = owned.epsilon
                module = layer.get_submodule(owned.parameter.rpartition(".")[0])
                setattr(module, name, float(f"{total / length_of(layer, owned):.12g}"))


@dataclass(frozen=True)
class Anatomy:
    """One kind of layer.

    Args:
        linears: (name, name of the first that reads the same tensor), in the order in which data reaches them.
        units: what has been proved on a small copy.
    """

    linears: tuple[tuple[str, str], ...] = ()
    units: tuple[Units, ...] = ()


def value_of(form: Form | None, heads: int, groups: int) -> int:
    """What a form says for these counts."""
    if form is None:
        return heads // groups
    return form[0] * heads + form[1] * groups + form[2]


def tensor_of(layer: nn.Module, name: str) -> torch.Tensor:
    """A parameter of a layer, or a buffer."""
    path, _, leaf = name.rpartition(".")
    found = getattr(layer.get_submodule(path), leaf)
    assert isinstance(found, torch.Tensor)
    return found.data if isinstance(found, nn.Parameter) else found


def has_tensor(layer: nn.Module, name: str) -> bool:
    """Whether a layer has a parameter, or a buffer, of that name."""
    return name in dict(layer.named_parameters()) or name in dict(layer.named_buffers())


EPSILONS = ("variance_epsilon", "eps", "epsilon")


def with_epsilons(units: Units, layer: nn.Module) -> Units:
    """The same with the epsilons that the norms of a layer have; those over latents stay as their class has them, so
    that it loads the result: they are small beside a latent."""
    if units.kind == "latent":
        return units
    return replace(units, owned=tuple(replace(o, epsilon=_epsilon(o, layer)) for o in units.owned))


def _epsilon(owned: Owned, layer: nn.Module) -> tuple[str, float] | None:
    module = layer.get_submodule(owned.parameter.rpartition(".")[0])
    for name in EPSILONS if owned.rescale else ():
        if isinstance(value := getattr(module, name, None), float):
            return name, value * length_of(layer, owned)
    return None


def length_of(layer: nn.Module, owned: Owned) -> int:
    return int(tensor_of(layer, owned.parameter).shape[owned.axis])


@dataclass(frozen=True)
class Place:
    """Where a unit's entries of an axis are: unit u owns [start, start + width) with
    start = offset + (u // run) * stride + (u % run) * width."""

    offset: int
    width: int
    run: int
    stride: int


def places(owned: Owned, level: Literal["head", "group"], heads: int, groups: int) -> Iterator[Place]:
    """The entries of an axis that units of this level own.

    Args:
        level: `head` leaves out what the heads of a group share.
    """
    offset, each = 0, heads // groups
    for segment in owned.segments:
        a, b, c = segment.form
        if segment.times == "head" and level == "head":
            yield Place(offset, a, heads, heads * a)
        elif segment.times == "head":
            yield Place(offset, a * each, groups, heads * a)
        elif segment.times == "group" and level == "group":
            period = a * each + b
            yield Place(offset, period, groups, groups * period)
        elif segment.times == "group":
            inner = 0
            for item in segment.items:
                if item.level == "head":
                    yield Place(offset + inner, item.width, each, a * each + b)
                inner += item.width * (each if item.level == "head" else 1)
        offset += a * heads + b * groups + c
