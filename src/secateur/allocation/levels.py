"""One kind of site of a block at several levels: what of the layer differs then, a file for each.

Every level is chosen by one ranking, so the levels are nested: what goes at one goes at all above it. Each is cut
and refitted on the untouched model's statistics, at full width; whoever puts it in place zeroes or removes the units.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.allocation.job import Job, scores_of
from secateur.calibration.walk import Block
from secateur.cut.counts import multiple
from secateur.cut.units import choose, decide, mask_of
from secateur.model.site_kinds import KINDS
from secateur.model.sites import Site
from secateur.numerics.keep_counts import keep_count
from secateur.numerics.moments import Moments

MASK = "units of "
T = TypeVar("T")


class Before(NamedTuple):
    """What went from a block before: the layer without it and otherwise untouched, and the masks of what stays."""

    layer: nn.Module
    masks: Mapping[str, Tensor]


@torch.no_grad()
def write_levels(
    job: Job,
    block: Block,
    sites: list[Site],
    shares: Mapping[int, float],
    folder: Path,
    known: Mapping[str, Moments] | None = None,
    before: Before | None = None,
) -> None:
    """Writes `<level>.safetensors` for each level of sites of one kind of a block, which stays as it is.

    A file holds the parameters that the refit changes and, under `units of <site>`, a mask of the units that stay.

    Args:
        shares: level -> the fraction of the units that goes.
        folder: exists.
        known: what `moments_for` these sites, or more of the block's, has found; None: it is gathered.
        before: what went from the block already, which the files are to say too.
    """
    untouched, kind = copy.deepcopy(block.layer), sites[0].kind
    reference, masks_before = before or Before(untouched, {})
    method = job.rules.units.method_for(kind)
    assert method is not None
    moments = known or moments_for(job, block, sites)
    scores = scores_of(job, block, sites, method, moments).split([site.units for site in sites])
    refitted = KINDS[kind].refitted
    consumers = {linear.name: linear for linear in block.linears}
    for level, share in shares.items():
        masks = {**masks_before}
        for site, values in zip(sites, scores, strict=True):
            count = keep_count(site.units, share, site.groups, multiple(job.config, site))
            chosen = choose(values, site, max(count, site.least))
            if refitted:
                rules = replace(job.rules.units, target="pruned", explain=False, planned=always(chosen))
                decide(block, site, consumers[site.consumer], moments[site.consumer], rules)
            masks[MASK + site.name] = mask_of(chosen, site.units)
        save_file(changed(block.layer, reference) | masks, folder / f"{level}.safetensors")
        block.layer.load_state_dict(untouched.state_dict())


def moments_for(job: Job, block: Block, sites: Sequence[Site]) -> dict[str, Moments]:
    """What scores and refits of these sites ask of their consumers' inputs, in one pass over the block."""
    refitted = [site for site in sites if KINDS[site.kind].refitted]
    method = job.rules.units.method
    needs = frozenset({"gram", "mean"}) | (method.statistics if method else frozenset())
    return block.moments([site.consumer for site in refitted], needs) if refitted else {}


def always(value: T) -> Callable[[object], T]:
    """A function that says the same of everything."""
    return lambda what: value


def changed(layer: nn.Module, before: nn.Module) -> dict[str, Tensor]:
    """Parameters that aren't what they were."""
    old = dict(before.named_parameters())
    return {n: p.data.contiguous().cpu() for n, p in layer.named_parameters() if not torch.equal(p, old[n])}


@torch.no_grad()
def put_values(layer: nn.Module, sites: list[Site], piece: Mapping[str, Tensor]) -> list[tuple[Site, Tensor]]:
    """Puts the parameters of a piece into a layer; gives the sites that it cuts, with masks (True = stays)."""
    named, masks = {MASK + site.name: site for site in sites}, []
    for name, value in piece.items():
        if name in named:
            masks.append((named[name], value))
        else:
            layer.get_parameter(name).copy_(value)
    return masks
