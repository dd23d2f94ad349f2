"""The kinds of sites, a line each: what a unit is, what scores it, how it goes, what is lighter then.

Whoever wants to know something of a kind of site asks this table. It needs no torch.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Goes = Literal["zeros", "units", "basis", "sub-block", "layer"]
SubBlock = Literal["attention", "ffn"]


class SiteKind(NamedTuple):
    """What is true of every site of a kind.

    Args:
        unit: what goes as one.
        goes: single weights become zeros; units are removed inside a block, each kind in its turn; a basis is cut in
            the whole model at once; sub-blocks and layers go whole.
        ability: what a method must be able to score.
        method: what scores it where no named method can; None = the quality says.
        part: the sub-block that its units are of.
        turn: of the kinds inside a block: the order in which data flows through them.
        refitted: a Linear reads the units, and is solved for what the target says once some are gone.
        heads: configurations and programs count them as heads.
        normed: the Linear that reads them reads what a norm over all of them hands on, so that those that stay grow
            when others go.
        speeds_up: what becomes less, and `spares` what doesn't.
    """

    unit: str
    goes: Goes
    ability: str
    method: str | None
    speeds_up: str
    spares: str
    part: SubBlock | None = None
    turn: int = 0
    refitted: bool = False
    heads: bool = False
    normed: bool = False


# `size` is both the file and the memory.
_SMALLER = "prefill, decode, size"
KINDS: dict[str, SiteKind] = {
    "weight": SiteKind(
        unit="a single weight of a Linear",
        goes="zeros",
        ability="weights",
        method=None,
        speeds_up="size, decode: after secateur compress",
        spares="prefill; as plain zeros, nothing",
    ),
    "channel": SiteKind(
        unit="a channel of a feed-forward network, or of an expert",
        goes="units",
        ability="units",
        method="obs",
        speeds_up=_SMALLER,
        spares="the KV cache",
        part="ffn",
        turn=5,
        refitted=True,
    ),
    "query_head": SiteKind(
        unit="a query head",
        goes="units",
        ability="units",
        method="obs",
        speeds_up=_SMALLER,
        spares="the KV cache: all KV heads stay",
        part="attention",
        turn=3,
        refitted=True,
        heads=True,
    ),
    "kv_group": SiteKind(
        unit="a key and value head with its query heads",
        goes="units",
        ability="units",
        method="obs",
        speeds_up=f"{_SMALLER}, KV cache",
        spares="tensor parallelism must divide it",
        part="attention",
        turn=2,
        refitted=True,
        heads=True,
    ),
    "latent": SiteKind(
        unit="a rank of what latent attention keeps of keys and values, or of queries",
        goes="units",
        ability="units",
        method="obs",
        speeds_up=f"{_SMALLER}, KV cache where latents are cached",
        spares="the KV cache of transformers, which holds whole heads",
        part="attention",
        turn=1,
        refitted=True,
        normed=True,
    ),
    "expert": SiteKind(
        unit="an expert with its row of the router",
        goes="units",
        ability="experts",
        method="reap",
        speeds_up="size",
        spares="decode, prefill: a token takes as many as before",
        part="ffn",
        turn=4,
    ),
    "hidden": SiteKind(
        unit="a hidden dimension of the whole model",
        goes="basis",
        ability="dimensions",
        method="pca",
        speeds_up=_SMALLER,
        spares="the KV cache; embeddings and head are no longer one matrix",
    ),
    "attention": SiteKind(
        unit="the attention of a layer",
        goes="sub-block",
        ability="sub-blocks",
        method="leave_one_out",
        speeds_up=_SMALLER,
        spares="loads with the modelling file",
        part="attention",
    ),
    "ffn": SiteKind(
        unit="the feed-forward network of a layer",
        goes="sub-block",
        ability="sub-blocks",
        method="leave_one_out",
        speeds_up=_SMALLER,
        spares="the KV cache; loads with the modelling file",
        part="ffn",
    ),
    "layer": SiteKind(
        unit="a whole layer",
        goes="layer",
        ability="layers",
        method="leave_one_out",
        speeds_up=f"{_SMALLER}, KV cache",
        spares="costs the most quality",
    ),
}


def kinds_that(*goes: Goes) -> tuple[str, ...]:
    """The kinds that go so, in the table's order."""
    return tuple(name for name, kind in KINDS.items() if kind.goes in goes)


SITE_KINDS = tuple(KINDS)
UNIT_KINDS = kinds_that("units")
SUB_BLOCKS = kinds_that("sub-block")
WHOLE = ("layer", *SUB_BLOCKS)
TURNS = tuple(sorted(UNIT_KINDS, key=lambda name: KINDS[name].turn))
REFITTED = frozenset(name for name in UNIT_KINDS if KINDS[name].refitted)
HEADS = frozenset(name for name in UNIT_KINDS if KINDS[name].heads)


def units_of(part: str) -> frozenset[str]:
    """The kinds whose units are of a sub-block; none for what isn't a sub-block."""
    return frozenset(name for name in UNIT_KINDS if KINDS[name].part == part)
