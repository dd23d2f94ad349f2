"""Sites: what can be removed from a decoder layer, in equal units, and which weights each unit owns.

    Site(kind="channel", layer=3, units=172, ...)   172 FFN channels of layer 3
    site.cuts                                       the parameter slices that one unit owns
    site.consumer                                     the Linear that consumes the units

A site knows nothing about scores; a cut knows nothing about models. Both are derived from `families`
and the shapes of one layer, so they are the same for a layer on disk, on the meta device or in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from secateur.model.anatomy import Units, places, tensor_of
from secateur.model.architectures import EXPERT_CHANNELS, ExpertModules, Family, join
from secateur.model.linears import has_weight, is_transposed, parameter_shape, submodule


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

    @property
    def reader(self) -> str:
        """The old name of `consumer`; it goes with the next release."""
        warnings.warn("Site.reader is called Site.consumer now", DeprecationWarning, stacklevel=2)
        return self.consumer

    @property
    def name(self) -> str:
        """As plans name it: `layers.3.channel`, or `layers.3.channel[5]` for the channels of expert 5."""
        suffix = f"[{self.label}]" if self.label else ("" if self.expert is None else f"[{self.expert}]")
        return f"layers.{self.layer}.{self.kind}{suffix}"


def sites_of(layer: nn.Module, family: Family, index: int, head_dim: int) -> list[Site]:
    """Lists every site of one decoder layer: query heads, KV groups, channels, experts, sub-blocks, the layer itself.

    Args:
        layer: the module, on any device (shapes only are read).
        family: the architecture's row of the table, see `family_of`.
        index: its place among the layers.
        head_dim: inputs of the attention output Linear per query head.
    """
    if family.anatomies:
        return [
            *_detected_sites(layer, family, index),
            *_expert_channel_sites(layer, family, index),
            *_expert_sites(layer, family, index),
            _whole("layer", layer, index, ("",), ""),
        ]
    return [
        *_attention_sites(layer, family, index, head_dim),
        *_channel_sites(layer, family, index),
        *_expert_sites(layer, family, index),
        *_whole_sites(layer, family, index),
    ]


def head_counts(layer: nn.Module, family: Family, head_dim: int) -> tuple[int, int]:
    """(query heads, KV heads) of a layer that has attention, from its shapes as they are."""
    a = family.attention
    heads = parameter_shape(layer, join(a.path, a.o))[1] // head_dim
    if a.fused is None:
        return heads, parameter_shape(layer, join(a.path, a.k))[0] // head_dim
    rows = parameter_shape(layer, join(a.path, a.fused))[0] // head_dim
    return heads, heads if a.layout == "interleaved" else (rows - heads) // 2


def _attention_sites(layer: nn.Module, family: Family, index: int, head_dim: int) -> Iterator[Site]:
    a = family.attention
    consumer = join(a.path, a.o)
    if not has_weight(layer, consumer):
        return
    heads, kv_heads = head_counts(layer, family, head_dim)
    group = heads // kv_heads
    q_cuts, kv_cuts = _head_cuts(layer, family, heads, kv_heads, head_dim)
    if group > 1:
        yield query_head_site(layer, family, index, head_dim)
    read = _matrix_cut(layer, consumer, 1, head_dim)
    cuts = (*(_widen(c, group) for c in q_cuts), *kv_cuts, _widen(read, group))
    yield _site("kv_group", layer, index, kv_heads, cuts, consumer, head_dim * group)


def query_head_site(layer: nn.Module, family: Family, index: int, head_dim: int) -> Site:
    """The query heads of a layer that has attention, also where each is alone in its KV group."""
    consumer = join(family.attention.path, family.attention.o)
    heads, kv_heads = head_counts(layer, family, head_dim)
    q_cuts, _ = _head_cuts(layer, family, heads, kv_heads, head_dim)
    cuts = (*q_cuts, _matrix_cut(layer, consumer, 1, head_dim))
    return _site("query_head", layer, index, heads, cuts, consumer, head_dim, groups=kv_heads)


def _head_cuts(
    layer: nn.Module, family: Family, heads: int, kv_heads: int, head_dim: int
) -> tuple[list[Cut], list[Cut]]:
    """What one query head, and what one KV head, owns of the Linears (and norms) that write q, k and v."""
    a = family.attention
    if a.fused is not None and a.layout == "interleaved":
        return [], _rows(layer, join(a.path, a.fused), 3 * head_dim)
    if a.fused is not None:
        fused, q_end, k_end = join(a.path, a.fused), heads * head_dim, (heads + kv_heads) * head_dim
        q = _rows(layer, fused, head_dim)
        kv = [*_rows(layer, fused, head_dim, q_end), *_rows(layer, fused, head_dim, k_end)]
        return q, kv
    q = _rows(layer, join(a.path, a.q), head_dim)
    kv = [*_rows(layer, join(a.path, a.k), head_dim), *_rows(layer, join(a.path, a.v), head_dim)]
    for norm, cuts in zip(a.width_norms, (q, kv), strict=False):
        cuts.append(Cut(f"{join(a.path, norm)}.weight", 0, head_dim, rescale=True))
    return q, kv


def _channel_sites(layer: nn.Module, family: Family, index: int) -> Iterator[Site]:
    if family.experts is not None and submodule(layer, family.experts.path) is not None:
        yield from _expert_channel_sites(layer, family, index)
        return
    f = family.ffn
    consumer = join(f.path, f.down)
    if not has_weight(layer, consumer):
        return
    units = parameter_shape(layer, consumer)[1]
    cuts: list[Cut] = []
    for name in f.up:
        writer = join(f.path, name)
        cuts += _rows(layer, writer, 1)
        if f.stacked:
            cuts += _rows(layer, writer, 1, units)
    cuts.append(_matrix_cut(layer, consumer, 1, 1))
    yield _site("channel", layer, index, units, tuple(cuts), consumer, 1)


def _detected_sites(layer: nn.Module, family: Family, index: int) -> Iterator[Site]:
    """Channels, heads and groups of heads, as they were found and proved."""
    for units in family.anatomy_of(layer).units:
        if not has_weight(layer, units.consumer):
            continue
        heads, groups = units.counts(layer)
        levels: dict[str, Literal["head", "group"]] = {}
        if units.kind == "channel":
            levels["channel"] = "head"
        else:
            levels |= {"query_head": "head"} if units.shared_kv or heads > groups else {}
            levels |= {"kv_group": "group"} if not units.shared_kv else {}
        for kind, level in levels.items():
            if kind in units.kinds:
                yield _unit_site(kind, layer, index, units, level)


def _unit_site(kind: str, layer: nn.Module, index: int, units: Units, level: Literal["head", "group"]) -> Site:
    heads, groups = units.counts(layer)
    count = heads if level == "head" else groups
    cuts = tuple(
        Cut(
            owned.parameter,
            owned.axis,
            place.width,
            place.offset,
            rescale=owned.rescale,
            run=0 if place.run == count else place.run,
            stride=0 if place.run == count else place.stride,
        )
        for owned in units.owned
        for place in places(owned, level, heads, groups)
    )
    inner = groups if level == "head" and units.grouped else 1
    width = units.width * (heads // count)
    return replace(_site(kind, layer, index, count, cuts, units.consumer, width, inner), label=units.label)


def _expert_channel_sites(layer: nn.Module, family: Family, index: int) -> Iterator[Site]:
    e = family.experts
    if e is None or submodule(layer, e.path) is None:
        return
    up, down = f"{e.path}.{e.up}", f"{e.path}.{e.down}"
    experts, rows, columns = layer.get_parameter(down).shape
    units = rows if e.transposed else columns
    for i in range(experts):
        cuts = (*_expert_rows(layer, e, up, units, i), Cut(down, 0 if e.transposed else 1, expert=i))
        site = _site("channel", layer, index, units, cuts, f"{down}[{i}]", 1, expert=i)
        yield replace(site, multiple=EXPERT_CHANNELS)


def _expert_rows(layer: nn.Module, e: ExpertModules, up: str, units: int, expert: int) -> Iterator[Cut]:
    """What a channel of an expert owns of the matrix that writes it, see `expert_forms`."""
    axis = 1 if e.transposed else 0
    if e.form == "interleaved":
        yield Cut(up, axis, width=2, expert=expert)
        yield Cut(f"{up}_bias", 0, width=2, expert=expert)
        return
    yield Cut(up, axis, expert=expert)
    if e.form != "plain":
        yield Cut(up, axis, offset=units, expert=expert)


def _expert_sites(layer: nn.Module, family: Family, index: int) -> Iterator[Site]:
    """Whole experts: each owns its slices of the 3-D parameters and its row of the router."""
    e = family.experts
    if e is None or submodule(layer, e.path) is None or not e.routed:
        return
    up, down = f"{e.path}.{e.up}", f"{e.path}.{e.down}"
    own = [(up, 0), (down, 0), (f"{e.router}.weight", 0), *e.also]
    if e.form == "interleaved":
        own += [(f"{up}_bias", 0), (f"{down}_bias", 0)]
    cuts = tuple(Cut(name, axis) for name, axis in own)
    site = _site("expert", layer, index, layer.get_parameter(down).shape[0], cuts, down, 1)
    least = e.least if e.least is not None else layer.get_submodule(e.router).top_k
    yield replace(site, least=least)  # type: ignore[arg-type]


def _whole_sites(layer: nn.Module, family: Family, index: int) -> Iterator[Site]:
    """Sites of one unit: the attention sub-block, the FFN sub-block, the layer. They own whole parameters."""
    e = family.experts
    attention_consumer = join(family.attention.path, family.attention.o)
    ffn_consumer = join(family.ffn.path, family.ffn.down)
    if e is not None and submodule(layer, e.path) is not None:
        ffn_consumer = f"{e.path}.{e.down}"
    for kind, consumer in (("attention", attention_consumer), ("ffn", ffn_consumer)):
        if any(True for m in family.modules_of(kind) for _ in layer.get_submodule(m).parameters()):
            yield _whole(kind, layer, index, family.modules_of(kind), consumer)
    yield _whole("layer", layer, index, ("",), ffn_consumer)


def _whole(kind: str, layer: nn.Module, index: int, modules: tuple[str, ...], consumer: str) -> Site:
    cuts = []
    for path in modules:
        for name, parameter in layer.get_submodule(path).named_parameters():
            cuts.append(Cut(join(path, name), 0, parameter.shape[0]))
    params = sum(tensor_of(layer, c.parameter).numel() for c in cuts)
    return Site(kind, index, 1, tuple(cuts), consumer, 1, params)


def _matrix_cut(layer: nn.Module, linear: str, axis: int, width: int, offset: int = 0) -> Cut:
    """A cut of a Linear's weight along logical axis 0 (outputs) or 1 (inputs), whatever its storage."""
    stored = 1 - axis if is_transposed(layer.get_submodule(linear)) else axis
    return Cut(f"{linear}.weight", stored, width, offset)


def _rows(layer: nn.Module, linear: str, width: int, offset: int = 0) -> list[Cut]:
    """Output rows of a Linear and, where it has one, the matching entries of its bias."""
    cuts = [_matrix_cut(layer, linear, 0, width, offset)]
    if getattr(layer.get_submodule(linear), "bias", None) is not None:
        cuts.append(Cut(f"{linear}.bias", 0, width, offset))
    return cuts


def _widen(cut: Cut, times: int) -> Cut:
    return Cut(cut.parameter, cut.axis, cut.width * times, cut.offset, cut.expert, cut.rescale)


def _site(
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
    params = sum(_entries(tensor_of(layer, c.parameter), c) for c in cuts)
    return Site(kind, index, units, cuts, consumer, width, params, groups, expert)


def _entries(parameter: torch.Tensor, cut: Cut) -> int:
    shape = list(parameter.shape[1:] if cut.expert is not None else parameter.shape)
    shape[cut.axis] = cut.width
    return int(torch.Size(shape).numel())
