"""What may go from a model, piece by piece, and what each piece saves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from secateur.allocation.job import Job
from secateur.cut.counts import multiple
from secateur.cut.units import choose, mask_of
from secateur.model.checkpoint import Checkpoint
from secateur.model.flops import flops_per_token
from secateur.model.site_kinds import KINDS, SUB_BLOCKS, TURNS, UNIT_KINDS, WHOLE
from secateur.model.sites import sites_of
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import drop, remove, update_heads
from secateur.numerics.keep_counts import keep_count

LEVELS = 8  # into which the units of a site are divided at most, the last of which would be all of them
LAYER = "layer"
KV, QUERY = "kv_group", "query_head"
BOTH = f"{KV}+{QUERY}"  # KV groups, and then query heads of those that are left; its level says both levels
NEAR = (0.25, 0.5)  # shares of heads that go together
CONTEXT = 4096  # tokens whose keys and values count as memory; fewer where the model's context is shorter


class Piece(NamedTuple):
    """One thing that may go: a level of a kind of unit of a layer, or (level 1) a whole sub-block or layer.

    Of kind `BOTH`, see `heads_of`.
    """

    layer: int
    kind: str
    level: int


Candidate = tuple[Piece, ...]  # ascending; at most one piece of each sub-block of a layer, or the layer alone


class Amounts(NamedTuple):
    """What a model takes, or a piece saves.

    Args:
        params: entries of its tensors.
        flops: of a token.
        cache: entries of keys and values that a token leaves.
    """

    params: float
    flops: float
    cache: float

    def minus(self, other: Amounts) -> Amounts:
        return Amounts(*(a - b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Space:
    """All pieces of a model.

    Args:
        saves: what each piece saves.
        shares: the fraction of its site's units that a piece takes; 1 of what goes whole.
        whole: what the untouched model takes.
        layers: how many it has.
    """

    saves: Mapping[Piece, Amounts]
    shares: Mapping[Piece, float]
    whole: Amounts
    layers: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of sites that pieces are of, in the table's order; `BOTH` after them."""
        there = {piece.kind for piece in self.saves}
        return tuple(kind for kind in (*KINDS, BOTH) if kind in there)

    def left(self, candidate: Candidate) -> Amounts:
        """What a model takes once these pieces are gone."""
        found = self.whole
        for piece in candidate:
            found = found.minus(self.saves[piece])
        return found


def part_of(kind: str) -> str:
    """The sub-block that a kind takes from, or `layer`."""
    return KINDS[KV if kind == BOTH else kind].part or LAYER


def heads_of(piece: Piece) -> tuple[Piece, Piece]:
    """What a piece of kind `BOTH` is made of: the piece of KV groups, and that of query heads, cut after it.

    >>> heads_of(Piece(3, BOTH, 2 * LEVELS + 1))
    (Piece(layer=3, kind='kv_group', level=2), Piece(layer=3, kind='query_head', level=1))
    """
    kv, query = divmod(piece.level, LEVELS)
    return Piece(piece.layer, KV, kv), Piece(piece.layer, QUERY, query)


def slots(pieces: Iterable[Piece]) -> dict[tuple[int, str], list[Piece]]:
    """(layer, sub-block) -> the pieces that may go from there, of which one can; layers that go take both."""
    found: dict[tuple[int, str], list[Piece]] = {}
    for piece in pieces:
        found.setdefault((piece.layer, part_of(piece.kind)), []).append(piece)
    return found


def space_of(job: Job, kinds: frozenset[str]) -> Space:
    """Every piece of the model's layers that aren't protected."""
    streamed, checkpoint = job.streamed, job.streamed.checkpoint
    saves: dict[Piece, Amounts] = {}
    shares: dict[Piece, float] = {}
    for index in range(checkpoint.layers):
        if index in job.rules.protected:
            continue
        before = _takes(streamed.template(index), checkpoint, index)
        for piece, share in _pieces(job, index, kinds).items():
            layer = streamed.template(index)
            if piece.kind == LAYER:
                left = Amounts(before.params - checkpoint.layer_parameters(index), 0.0, 0.0)
            else:
                cut_shape(job, layer, piece)
                left = _takes(layer, checkpoint, index)
            saves[piece], shares[piece] = before.minus(left), share
    every = [_takes(streamed.template(index), checkpoint, index) for index in range(checkpoint.layers)]
    layers = list(checkpoint.template.get_submodule(checkpoint.family.layers).children())
    flops = flops_per_token(checkpoint, layers)
    return Space(saves, shares, Amounts(checkpoint.parameters, flops, sum(x.cache for x in every)), checkpoint.layers)


def _pieces(job: Job, index: int, kinds: frozenset[str]) -> dict[Piece, float]:
    """Piece -> the fraction that it takes, for everything of one layer."""
    found: dict[Piece, float] = {}
    sites = job.streamed.checkpoint.sites[index]
    for kind in (kind for kind in TURNS if kind in kinds):
        own = [site for site in sites if site.kind == kind]
        levels = min(LEVELS, own[0].units // math.lcm(own[0].groups, multiple(job.config, own[0]))) if own else 0
        taken = {own[0].units} if own else set()
        for level in range(1, levels):
            count = keep_count(own[0].units, level / levels, own[0].groups, multiple(job.config, own[0]))
            if own[0].least <= count < min(taken):
                taken.add(count)
                found[Piece(index, kind, level)] = level / levels
    if {KV, QUERY} <= kinds:
        found |= _both(found, index)
    for kind in (kind for kind in WHOLE if kind in kinds):
        if kind == LAYER or any(site.kind == kind for site in sites):
            found[Piece(index, kind, 1)] = 1.0
    return found


def _both(alone: Mapping[Piece, float], index: int) -> dict[Piece, float]:
    """KV groups together with query heads: of each at most two levels, near a quarter and a half."""
    found, few = {}, {}
    for kind in (KV, QUERY):
        shares = {piece.level: share for piece, share in alone.items() if piece.kind == kind}
        near = [min(shares, key=lambda level: abs(shares[level] - about)) for about in NEAR if shares]
        few[kind] = {level: shares[level] for level in near}
    for kv, query in itertools.product(few[KV], few[QUERY]):
        share = 1 - (1 - few[KV][kv]) * (1 - few[QUERY][query])
        found[Piece(index, BOTH, kv * LEVELS + query)] = share
    return found


def cut_shape(job: Job, layer: nn.Module, piece: Piece) -> None:
    """Takes a piece out of a layer, in place, whichever units those are: for its shapes."""
    checkpoint = job.streamed.checkpoint
    if piece.kind == BOTH:
        for part in heads_of(piece):
            cut_shape(job, layer, part)
        return
    sites = sites_of(layer, checkpoint.family, piece.layer, checkpoint.head_dim)
    own = [site for site in sites if site.kind == piece.kind]
    if piece.kind in SUB_BLOCKS:
        for site in own:
            drop(layer, site, checkpoint.family)
        return
    assert piece.kind in UNIT_KINDS
    masks = []
    for site in own:
        share = piece.level / levels_of(job, piece)
        count = keep_count(site.units, share, site.groups, multiple(job.config, site))
        kept = choose(torch.arange(site.units), site, max(count, site.least))
        masks.append((site, mask_of(kept, site.units)))
    remove(layer, masks)
    update_heads(layer, checkpoint.family, checkpoint.head_dim)


def by_piece(
    job: Job,
    space: Space,
    of_layer: Callable[[nn.Module, int], float | None],
    without: Collection[int] = (),
) -> tuple[float, dict[Piece, float]]:
    """A sum over the untouched model's layers, and what goes of it with each piece.

    Args:
        of_layer: a term, from a layer's shapes and its place; None: of such a layer there is none, and pieces that
            leave one are left out.
        without: layers that don't count.
    """
    streamed, pieces, whole = job.streamed, dict[Piece, float](), 0.0
    for index in (index for index in range(streamed.checkpoint.layers) if index not in without):
        before = of_layer(streamed.template(index), index)
        if before is None:
            continue
        whole += before
        for piece in (piece for piece in space.saves if piece.layer == index):
            layer, left = streamed.template(index), 0.0 if piece.kind == LAYER else None
            if piece.kind != LAYER:
                cut_shape(job, layer, piece)
                left = of_layer(layer, index)
            if left is not None:
                pieces[piece] = before - left
    return whole, pieces


def levels_of(job: Job, piece: Piece) -> int:
    """Into how many levels the units of a piece's site are divided."""
    site = next(s for s in job.streamed.checkpoint.sites[piece.layer] if s.kind == piece.kind)
    return min(LEVELS, site.units // math.lcm(site.groups, multiple(job.config, site)))


def _takes(layer: nn.Module, checkpoint: Checkpoint, index: int) -> Amounts:
    params = sum(parameter.numel() for parameter in layer.parameters())
    flops = flops_per_token(checkpoint, [layer]) - flops_per_token(checkpoint, [])
    sites = sites_of(layer, checkpoint.family, index, checkpoint.head_dim)
    cache = sum(2 * site.units * checkpoint.head_dim for site in sites if site.kind == "kv_group")
    return Amounts(params, flops, cache)


def bytes_of(streamed: StreamedModel, amounts: Amounts, params: float) -> tuple[float, float]:
    """(bytes on disk, bytes in memory with the cache of a text of `CONTEXT` tokens) of a model.

    Args:
        params: of the untouched model.
    """
    checkpoint = streamed.checkpoint
    size = checkpoint.bytes_on_disk * amounts.params / params
    context = min(CONTEXT, int(getattr(checkpoint.config, "max_position_embeddings", None) or CONTEXT))
    return size, size + amounts.cache * context * checkpoint.dtype.itemsize
