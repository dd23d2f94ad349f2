"""KV groups and query heads of one layer together: first groups go, then query heads of those that are left.

How many query heads a layer has then, and what they are called, depends on which groups went. So such a piece is
cut and refitted in that order, as `cut.units` does, and its file holds the layer's parameters as they are in between.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.allocation.job import Job
from secateur.allocation.levels import MASK, Before, put_values, write_levels
from secateur.calibration.walk import Block
from secateur.model.checkpoint import Checkpoint
from secateur.model.site import Site
from secateur.model.sites import sites_of
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import remove, update_heads
from secateur.search.space import KV, QUERY, Piece, heads_of


@torch.no_grad()
def write_heads(job: Job, block: Block, pieces: Mapping[Piece, float], groups: Path, folder: Path) -> None:
    """Writes `<level>.safetensors` for pieces of kind `BOTH` of a block, which stays as it is.

    A file holds masks of the KV groups that stay and of the query heads (of those groups) that do, and what both
    refits have changed of the layer, in its shapes without the groups.

    Args:
        pieces: piece -> the share of the query heads that its second part takes.
        groups: the files of the layer's pieces of KV groups.
        folder: exists.
    """
    checkpoint, pairs = job.streamed.checkpoint, {piece: heads_of(piece) for piece in pieces}
    for first in dict.fromkeys(first for first, _ in pairs.values()):
        values = load_file(groups / f"{first.level}.safetensors")
        masks = named(checkpoint, block.index, KV, block.layer, values)
        own = replace(block, layer=copy.deepcopy(block.layer), gradients=copy.deepcopy(block.gradients))
        plain = copy.deepcopy(block.layer)
        cut_groups(own.layer, checkpoint, masks, values)
        for layer in (plain, *own.gradients.values()):
            cut_groups(layer, checkpoint, masks, {})
        shares = {piece.level: pieces[piece] for piece, pair in pairs.items() if pair[0] == first}
        told = {name: mask for name, mask in values.items() if name.startswith(MASK)}
        sites = _sites(checkpoint, block.index, QUERY, own.layer)
        write_levels(job, own, sites, shares, folder, before=Before(plain, told))


def cut_groups(
    layer: nn.Module, checkpoint: Checkpoint, masks: list[tuple[Site, Tensor]], values: dict[str, Tensor]
) -> None:
    """Takes KV groups out of a layer, in place, once these parameters were put in."""
    put_values(layer, [], {name: value for name, value in values.items() if not name.startswith(MASK)})
    remove(layer, masks)
    update_heads(layer, checkpoint.family, checkpoint.head_dim)


def put_heads(layer: nn.Module, checkpoint: Checkpoint, index: int, values: dict[str, Tensor]) -> None:
    """Cuts a layer, in place, as a file of `write_heads` says."""
    cut_groups(layer, checkpoint, named(checkpoint, index, KV, layer, values), {})
    for name, value in values.items():
        if not name.startswith(MASK):
            layer.get_parameter(name).copy_(value)
    remove(layer, named(checkpoint, index, QUERY, layer, values))
    update_heads(layer, checkpoint.family, checkpoint.head_dim)


def kept_heads(streamed: StreamedModel, index: int, values: dict[str, Tensor]) -> list[tuple[Site, Tensor]]:
    """The sites that a piece cuts, in the order in which they go, each as it is then, with masks of what stays."""
    checkpoint, layer = streamed.checkpoint, streamed.template(index)
    first = named(checkpoint, index, KV, layer, values)
    cut_groups(layer, checkpoint, first, {})
    return [*first, *named(checkpoint, index, QUERY, layer, values)]


def named(
    checkpoint: Checkpoint, index: int, kind: str, layer: nn.Module, values: dict[str, Tensor]
) -> list[tuple[Site, Tensor]]:
    """A layer's sites of a kind, as they are now, with the masks that a file has of them."""
    return [(site, values[MASK + site.name]) for site in _sites(checkpoint, index, kind, layer)]


def _sites(checkpoint: Checkpoint, index: int, kind: str, layer: nn.Module) -> list[Site]:
    sites = sites_of(layer, checkpoint.family, index, checkpoint.head_dim)
    return [site for site in sites if site.kind == kind]
