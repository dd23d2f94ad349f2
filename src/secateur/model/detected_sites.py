"""Sites of a detected architecture: channels, heads, groups of heads and latents, as they were found and proved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from torch import nn

from secateur.model.anatomy import Units, places
from secateur.model.architectures import Family
from secateur.model.linears import has_weight
from secateur.model.site import Cut, Site, make_site


def detected_sites(layer: nn.Module, family: Family, index: int) -> Iterator[Site]:
    """Channels, heads, groups of heads and latents, as they were found and proved."""
    for units in family.anatomy_of(layer).units:
        if not has_weight(layer, units.consumer):
            continue
        heads, groups = units.counts(layer)
        levels: dict[str, Literal["head", "group"]] = {}
        if units.kind != "head":
            levels[units.kind] = "head"
        elif units.runs:
            grouped = any(size.form is None for size in units.sizes)  # keys and values are those of another layer
            levels |= {"query_head" if grouped else "kv_group": "head"} if heads > units.runs else {}
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
    site = make_site(kind, layer, index, count, cuts, units.consumer, width, inner)
    return replace(site, label=units.label, by_head=bool(units.by_head))
