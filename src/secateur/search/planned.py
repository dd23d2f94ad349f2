"""A candidate as the plan that replays it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from secateur.allocation.job import Job
from secateur.config.plan import Plan
from secateur.cut.block import BlockCuts
from secateur.cut.units import UnitCut
from secateur.cut.weights import WeightCut
from secateur.model.linears import linears_of
from secateur.model.site_kinds import SUB_BLOCKS
from secateur.model.sites import Site
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.result import PassResult
from secateur.pipeline.results.report import make_plan
from secateur.search.heads import kept_heads
from secateur.search.levels import file_of, masks_of
from secateur.search.space import BOTH, LAYER, Candidate, Piece, cut_shape


def plan_of(inputs: Inputs, candidate: Candidate, folder: Path) -> Plan:
    """The plan that leaves exactly the units that the candidate was measured with, and what the rules say of zeros.

    Args:
        folder: the files of `search.levels`.
    """
    layers = range(inputs.checkpoint.layers)
    gone = {piece.layer for piece in candidate if piece.kind == LAYER}
    kept = tuple(index for index in layers if index not in gone)
    blocks = [
        BlockCuts(index, {}, _cuts(inputs, candidate, index, folder), _zeros(inputs, candidate, index))
        for index in kept
    ]
    dropped = frozenset((piece.layer, piece.kind) for piece in candidate if piece.kind in SUB_BLOCKS)
    return make_plan(inputs, PassResult(replace(inputs.rules, dropped=dropped), kept, tuple(blocks)))


def _cuts(inputs: Inputs, candidate: Candidate, index: int, folder: Path) -> list[UnitCut]:
    """What goes of one layer."""
    cuts: list[UnitCut] = []
    for piece in (piece for piece in candidate if piece.layer == index):
        for site, keep in _kept(inputs, piece, folder):
            cuts.append(UnitCut(site, keep, None, None, None, None))
    return cuts


def _zeros(inputs: Inputs, candidate: Candidate, index: int) -> list[WeightCut]:
    """The Linears that get zeros, in the shapes that the cuts leave; none where the rules say nothing of weights."""
    rules, streamed = inputs.rules, inputs.streamed
    if rules.weight_method is None or index in rules.protected:
        return []
    layer = streamed.template(index)
    for piece in (piece for piece in candidate if piece.layer == index):
        cut_shape(Job(inputs.config, rules, streamed, inputs.calibration.tokens, ()), layer, piece)
    linears = linears_of(layer, streamed.checkpoint.family)
    return [WeightCut(one.name, one.shape, 0.0, None, None) for one in linears]


def _kept(inputs: Inputs, piece: Piece, folder: Path) -> list[tuple[Site, tuple[int, ...]]]:
    """Sites in the order in which they're cut, with the units that stay."""
    sites = [site for site in inputs.checkpoint.sites[piece.layer] if site.kind == piece.kind]
    if piece.kind in SUB_BLOCKS:
        return [(site, ()) for site in sites]
    if piece.kind == BOTH:
        masks = kept_heads(inputs.streamed, piece.layer, load_file(file_of(folder, piece)))
    else:
        named = masks_of(folder, piece)
        masks = [(site, named[site.name]) for site in sites]
    return [(site, tuple(mask.nonzero().flatten().tolist())) for site, mask in masks]
