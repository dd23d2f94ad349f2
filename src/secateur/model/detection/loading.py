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
    layers = list(model.get_submodule(family.layers).children())
    out = []
    for kind in UNIT_KINDS:
        sites = [[s for s in sites_of(x, family, place, 0) if s.kind == kind] for place, x in enumerate(layers)]
        share = _share([site for own in sites for site in own])
        wanted, cut = dict(now), False
        for place, original in enumerate(layers):
            layer = copy.deepcopy(original)
            cut = _cut(layer, family, sites[place], share) or cut
            # Epsilons of a copy aren't those of its configuration, so only what the cut changes is asked for.
            before = dict(flat(family.layers, place, detected_widths(original, family)))
            after = flat(family.layers, place, detected_widths(layer, family))
            wanted |= {name: value for name, value in after if before.get(name) != value}
        if cut and fitted(values, now, wanted, family.layers) is not None:
            out.append(kind)
    return tuple(out)


def _share(sites: list[Site]) -> float:
    """About a half, such that experts keep a number of channels that they may: one key may say the widths of several
    sites, which agree if all of them keep the same share."""
    strict = max(sites, key=lambda site: site.multiple, default=None)
    if strict is None or strict.multiple == 1:
        return 0.5
    return max(1, strict.units // 2 // strict.multiple) * strict.multiple / strict.units


def _cut(layer: nn.Module, family: Family, sites: list[Site], share: float) -> bool:
    cuts = [(site, keep) for site in sites if not bool((keep := _some(site, share)).all())]
    if cuts:
        remove(layer, cuts)
        update_heads(layer, family, 0)
    return bool(cuts)


def _some(site: Site, share: float) -> torch.Tensor:
    size = site.units // site.groups
    least = max(1, int(size * share + 1e-9) // site.multiple * site.multiple, -(-site.least // site.groups))
    return (torch.arange(site.units) % size) < least
