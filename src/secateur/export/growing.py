"""Growing a layer: units of zeros are added to a site, which changes nothing that the layer computes.

The inverse of `model.surgery.remove`, by the same table of cuts. Zeros go behind the last unit; query heads behind
the last one of their KV group.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import torch
from torch import Tensor, nn

from secateur.errors import UnsupportedModelError
from secateur.model.architectures import Family, join
from secateur.model.linears import has_weight
from secateur.model.sites import Cut, Site, head_counts, query_head_site, sites_of
from secateur.model.surgery import set_parameter, update_heads


def grow_heads(layer: nn.Module, family: Family, index: int, head_dim: int, heads: int, kv_heads: int) -> None:
    """Gives a layer that has attention so many heads, in place.

    Args:
        heads: query heads, a multiple of `kv_heads`; neither number is less than the layer has, nor are the query
            heads of a KV group.
    """
    if not has_weight(layer, join(family.attention.path, family.attention.o)):
        return
    now, groups = head_counts(layer, family, head_dim)
    each = heads // kv_heads - now // groups
    if each:
        _grow(layer, query_head_site(layer, family, index, head_dim), each)
    if kv_heads > groups:
        sites = sites_of(layer, family, index, head_dim)
        _grow(layer, next(site for site in sites if site.kind == "kv_group"), kv_heads - groups)
    update_heads(layer, family, head_dim)


def grow_channels(layer: nn.Module, family: Family, index: int, head_dim: int, channels: int) -> None:
    """Gives the feed-forward network of a layer, or each of its experts, so many channels, in place."""
    sites = [site for site in sites_of(layer, family, index, head_dim) if site.kind == "channel"]
    if len({site.units for site in sites}) > 1:
        raise UnsupportedModelError(f"layer {index}: its experts differ in width")
    for site in sites[:1]:  # experts share their tensors
        if channels > site.units:
            _grow(layer, site, channels - site.units)


def _grow(layer: nn.Module, site: Site, more: int) -> None:
    """Adds `more` units of zeros to each group of a site."""
    found: dict[str, list[Cut]] = defaultdict(list)
    for cut in site.cuts:
        found[cut.parameter].append(cut)
    group = site.units // site.groups
    for name, cuts in found.items():
        value = layer.get_parameter(name).data
        for axis in {_axis(cut) for cut in cuts}:
            places: Counter[int] = Counter()
            for cut in (cut for cut in cuts if _axis(cut) == axis):
                for number in range(1, site.groups + 1):
                    places[cut.offset + number * group * cut.width] += more * cut.width
            value = with_zeros(value, axis, places)
        if any(cut.rescale for cut in cuts):
            # The norm's mean is over more entries now: it's smaller, and what it divides larger.
            value = value * math.sqrt(group / (group + more))
        set_parameter(layer, name, value)


def _axis(cut: Cut) -> int:
    return cut.axis if cut.expert is None else cut.axis + 1


def with_zeros(value: Tensor, axis: int, places: Counter[int]) -> Tensor:
    """A tensor with zeros put in along an axis; `places`: position in `value` -> how many go in front of it.

    >>> with_zeros(torch.tensor([1, 2, 3]), 0, Counter({2: 1})).tolist()
    [1, 2, 0, 3]
    """
    parts, begin = [], 0
    for place, count in sorted(places.items()):
        shape = [count if at == axis else size for at, size in enumerate(value.shape)]
        parts += [value.narrow(axis, begin, place - begin), value.new_zeros(shape)]
        begin = place
    return torch.cat([*parts, value.narrow(axis, begin, value.shape[axis] - begin)], axis)
