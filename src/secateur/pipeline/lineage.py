"""Several passes over a model, told as one: every layer, unit and cut by its number in the original model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from secateur.cut.block import BlockCuts
from secateur.cut.evidence import Evidence
from secateur.cut.merging import Merge
from secateur.cut.units import UnitCut
from secateur.model.site_kinds import SUB_BLOCKS, units_of
from secateur.model.sites import Site
from secateur.workspace.records import Record

# JSON has no keys but texts, so mappings are written as rows.
Blocks = Annotated[
    Mapping[int, BlockCuts],
    BeforeValidator(lambda rows: {row["index"]: row for row in rows}),
    PlainSerializer(lambda blocks: [block.to_json() for block in blocks.values()]),
]
LayerScores = Annotated[
    Mapping[int, float], BeforeValidator(dict), PlainSerializer(lambda scores: list(scores.items()))
]
PartScores = Annotated[
    Mapping[tuple[int, str], float],
    BeforeValidator(lambda rows: {(layer, kind): score for layer, kind, score in rows}),
    PlainSerializer(lambda scores: [[*part, score] for part, score in scores.items()]),
]


@dataclass(frozen=True)
class Lineage(Record):
    """What is left of a model, and all that was done to it; layers by their place in the original.

    Args:
        path: the original checkpoint.
        depth: its layers.
        layers: those that are left.
        blocks: what was done to each of those.
        layer_scores: of each layer, when it was last looked at.
        sub_block_scores: (layer, kind) -> the same.
    """

    path: Annotated[Path, PlainSerializer(str)]
    depth: int
    layers: tuple[int, ...]
    blocks: Blocks = field(default_factory=dict)
    layer_scores: LayerScores = field(default_factory=dict)
    sub_block_scores: PartScores = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, depth: int) -> Lineage:
        """Of a model that nothing was done to."""
        return cls(path, depth, tuple(range(depth)))

    @property
    def dropped(self) -> frozenset[tuple[int, str]]:
        """(layer, kind) of the sub-blocks that are gone from the layers that are left."""
        return frozenset((i, cut.site.kind) for i, cut in self._cuts() if cut.site.kind in SUB_BLOCKS)

    def units(self, site: Site) -> int:
        """How many units a site of the present model had in the original."""
        layer = self.layers[site.layer]
        before = self.blocks[layer].units if layer in self.blocks else []
        same = (cut.site for cut in before if cut.site.place == site.place)
        return next(same, site).units

    def after(
        self,
        kept: Sequence[int],
        blocks: Sequence[BlockCuts],
        layer_scores: Mapping[int, float] | None = None,
        sub_block_scores: Mapping[tuple[int, str], float] | None = None,
    ) -> Lineage:
        """With one more pass, whose arguments number the layers as they were before it."""
        names = self.layers
        own = {names[block.index]: block for block in blocks}
        layers = tuple(names[place] for place in kept)
        of_layers = {names[place]: score for place, score in (layer_scores or {}).items()}
        of_parts = {(names[place], kind): score for (place, kind), score in (sub_block_scores or {}).items()}
        return Lineage(
            self.path,
            self.depth,
            layers,
            {i: self._joined(i, own[i]) for i in layers},
            {**self.layer_scores, **of_layers},
            {**self.sub_block_scores, **of_parts},
        )

    def _cuts(self) -> Iterator[tuple[int, UnitCut]]:
        return ((i, cut) for i, block in self.blocks.items() for cut in block.units)

    def _joined(self, layer: int, new: BlockCuts) -> BlockCuts:
        before = self.blocks.get(layer)
        cuts = {cut.site.place: cut for cut in before.units} if before is not None else {}
        for cut in new.units:
            key = cut.site.place
            own = replace(cut, site=replace(cut.site, layer=layer))
            cuts[key] = joined(cuts[key], own) if key in cuts else own
        gone = {part for kind, *_ in cuts if kind in SUB_BLOCKS for part in units_of(kind)}
        units = [cut for (kind, *_), cut in cuts.items() if kind not in gone]
        added = new.added + (before.added if before is not None else 0)
        weights = new.weights or (before.weights if before is not None else [])
        return replace(new, index=layer, units=units, weights=weights, added=added)


def joined(first: UnitCut, then: UnitCut) -> UnitCut:
    """Two cuts of one site as one, by the numbers of the first.

    Errors and damping are those of the cut that took something last; a unit's score is the one by which it went,
    or by which it stayed last.
    """
    left = first.keep
    keep = tuple(left[unit] for unit in then.keep)
    last = then if len(keep) < len(left) else first
    scores = list(first.scores) if first.scores is not None else None
    if scores is not None and then.scores is not None:
        for unit, score in zip(left, then.scores, strict=True):
            scores[unit] = score
    return replace(
        first,
        keep=keep,
        scores=None if scores is None else tuple(scores),
        error_masked=last.error_masked,
        error=last.error,
        damping=last.damping,
        evidence=_evidence(first, then),
        merged=_merged(first, then),
    )


def _merged(first: UnitCut, then: UnitCut) -> tuple[Merge, ...] | None:
    """Of all experts that went, in ascending order; one that has absorbed others may have gone later itself."""
    if first.merged is None and then.merged is None:
        return None
    names = first.keep
    later = [replace(m, unit=names[m.unit], into=names[m.into]) for m in then.merged or ()]
    return tuple(sorted([*(first.merged or ()), *later], key=lambda merge: merge.unit))


def _evidence(first: UnitCut, then: UnitCut) -> Evidence | None:
    """Of all units that went, in ascending order."""
    rows: dict[int, tuple[object, ...]] = {}
    for cut, names in ((first, tuple(range(first.site.units))), (then, first.keep)):
        if len(cut.keep) == len(names):
            continue
        if cut.evidence is None:
            return None
        gone = sorted(set(range(len(names))) - set(cut.keep))
        found = cut.evidence
        predictors = tuple(tuple(names[unit] for unit in row) for row in found.predictors)
        columns = (found.bits, found.energy, found.restored, predictors, found.shares, found.places, found.values)
        rows |= {names[unit]: row for unit, row in zip(gone, zip(*columns, strict=True), strict=True)}
    if not rows:
        return None
    return Evidence(*map(tuple, zip(*(rows[unit] for unit in sorted(rows)), strict=True)))
