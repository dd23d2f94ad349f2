"""Which kinds of cuts a stock class loads, when all layers are cut alike: tried on a small copy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from secateur.model.architectures import Family
from secateur.model.detection.keys import fitted, flat, shapes_of, stock_values
from secateur.model.site_kinds import UNIT_KINDS
from secateur.model.sites import Site, sites_of
from secateur.model.surgery import remove, update_heads
from secateur.model.widths import detected_widths


def stock_kinds(model: Any, family: Family) -> tuple[str, ...]:
    """Kinds of units of which half can go, and the configuration of the copy's own class says so.

    Args:
        family: the row of the copy.
    """
    family.mark(model)
    values = stock_values(model.config)
    now = shapes_of(values, family.layers)
    out = []
    for kind in UNIT_KINDS:
        wanted, cut = dict(now), False
        for place, original in enumerate(model.get_submodule(family.layers).children()):
            layer = copy.deepcopy(original)
            cut = _halved(layer, family, place, kind) or cut
            wanted |= flat(family.layers, place, detected_widths(layer, family))
        if cut and fitted(values, now, wanted, family.layers) is not None:
            out.append(kind)
    return tuple(out)


def _halved(layer: nn.Module, family: Family, place: int, kind: str) -> bool:
    cuts = [(site, _half(site)) for site in sites_of(layer, family, place, 0) if site.kind == kind]
    cuts = [(site, keep) for site, keep in cuts if not bool(keep.all())]
    if cuts:
        remove(layer, cuts)
        update_heads(layer, family, 0)
    return bool(cuts)


def _half(site: Site) -> torch.Tensor:
    size = site.units // site.groups
    least = max(1, size // 2 // site.multiple * site.multiple, -(-site.least // site.groups))
    return (torch.arange(site.units) % size) < least
