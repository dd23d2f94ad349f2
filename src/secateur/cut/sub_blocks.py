"""Attention and FFN sub-blocks that go whole; which ones was decided before the walk."""

from __future__ import annotations

from collections.abc import Set

from secateur.calibration.walk import Block
from secateur.cut.units import UnitCut
from secateur.model.sites import sites_of
from secateur.model.surgery import drop


def drop_sub_blocks(block: Block, dropped: Set[tuple[int, str]]) -> list[UnitCut]:
    """Takes a block's sub-blocks out, in place.

    Args:
        dropped: (layer, kind) of every sub-block of the model that goes.
    """
    checkpoint, cuts = block.streamed.checkpoint, []
    for site in sites_of(block.layer, checkpoint.family, block.index, checkpoint.head_dim):
        if (block.index, site.kind) in dropped:
            drop(block.layer, site, checkpoint.family)
            cuts.append(UnitCut(site, (), None, None, None, None))
    return cuts
