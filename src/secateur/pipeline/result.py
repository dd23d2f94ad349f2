"""What has become of a model: the result of one pass over it, or of several, told as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secateur.cut.block import BlockCuts
from secateur.cut.hidden import Narrowed
from secateur.cut.rules import Rules
from secateur.cut.units import UnitCut
from secateur.cut.weights import WeightCut
from secateur.model.uneven import Widths
from secateur.report.schema.recovery import RecoveryFacts
from secateur.report.schema.report import GateFacts, GradualStep


@dataclass(frozen=True)
class PassResult:
    """What went, and what is known of it.

    Args:
        rules: as they were carried out: with the sparsity spread, and with the sub-blocks that go.
        kept: the layers that stay.
        blocks: what was done to each of those.
        shares: what an allocation takes where, by site.
        sub_block_scores: (layer, kind) -> loss without it.
        warnings: what the report should say beside the inputs' notes.
        gate: what the round-trip gate found; None on ranks other than the first, or where nothing was saved.
        recovery: the report's section on the training after pruning.
        steps: of a gradual run, as the report lists them.
        narrowed: what has become of the hidden dimensions.
    """

    rules: Rules
    kept: tuple[int, ...]
    blocks: tuple[BlockCuts, ...]
    shares: Mapping[str, float] = field(default_factory=dict)
    layer_scores: Mapping[int, float] = field(default_factory=dict)
    sub_block_scores: Mapping[tuple[int, str], float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    gate: GateFacts | None = None
    recovery: RecoveryFacts | None = None
    steps: tuple[GradualStep, ...] = ()
    narrowed: Narrowed | None = None

    @property
    def unit_cuts(self) -> list[UnitCut]:
        return [cut for block in self.blocks for cut in block.units]

    @property
    def weight_cuts(self) -> list[tuple[int, WeightCut]]:
        return [(block.index, cut) for block in self.blocks for cut in block.weights]

    @property
    def widths(self) -> dict[int, Widths]:
        """Place in the pruned model -> widths of that layer."""
        return {place: block.widths for place, block in enumerate(self.blocks)}

    @property
    def added_parameters(self) -> int:
        return sum(block.added for block in self.blocks)
