"""A candidate as the plan that replays it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from secateur.config.plan import Plan
from secateur.cut.block import BlockCuts
from secateur.cut.units import UnitCut
from secateur.model.site_kinds import SUB_BLOCKS
from secateur.model.sites import Site
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.result import PassResult
from secateur.pipeline.results.report import make_plan
from secateur.search.levels import masks_of
from secateur.search.space import LAYER, Candidate, Piece


def plan_of(inputs: Inputs, candidate: Candidate, folder: Path) -> Plan:
    """The plan that leaves exactly the units that the candidate was measured with.

    Args:
        folder: the files of `search.levels`.
    """
    layers = range(inputs.checkpoint.layers)
    gone = {piece.layer for piece in candidate if piece.kind == LAYER}
    kept = tuple(index for index in layers if index not in gone)
    blocks = [BlockCuts(index, {}, _cuts(inputs, candidate, index, folder)) for index in kept]
    dropped = frozenset((piece.layer, piece.kind) for piece in candidate if piece.kind in SUB_BLOCKS)
    return make_plan(inputs, PassResult(replace(inputs.rules, dropped=dropped), kept, tuple(blocks)))


def _cuts(inputs: Inputs, candidate: Candidate, index: int, folder: Path) -> list[UnitCut]:
    """What goes of one layer."""
    cuts: list[UnitCut] = []
    for piece in (piece for piece in candidate if piece.layer == index):
        sites = [site for site in inputs.checkpoint.sites[index] if site.kind == piece.kind]
        for site, keep in _kept(piece, sites, folder).items():
            cuts.append(UnitCut(site, keep, None, None, None, None))
    return cuts


def _kept(piece: Piece, sites: list[Site], folder: Path) -> dict[Site, tuple[int, ...]]:
    if piece.kind in SUB_BLOCKS:
        return dict.fromkeys(sites, ())
    masks = masks_of(folder, piece)
    return {site: tuple(masks[site.name].nonzero().flatten().tolist()) for site in sites}
