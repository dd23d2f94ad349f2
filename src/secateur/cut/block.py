"""All cuts of one block, in order: whole sub-blocks, structured sites, single weights of what is left; then
reconstruction."""

from __future__ import annotations

from dataclasses import dataclass, field

from secateur.calibration.activations import MemoryBudget
from secateur.calibration.gradients import LayerGradients, hand_over
from secateur.calibration.loss_weights import LossWeights
from secateur.calibration.walk import Block
from secateur.cut.rules import Rules
from secateur.cut.sub_blocks import drop_sub_blocks
from secateur.cut.units import UnitCut, cut_units
from secateur.cut.weights import WeightCut, cut_weights, recounted
from secateur.model.biases import add_biases
from secateur.model.uneven import Widths, layer_widths
from secateur.reconstruct.masks import Gradual, GradualUnits, GradualWeights
from secateur.reconstruct.tune import Tuned, reconstruct
from secateur.workspace.records import Record


@dataclass
class BlockCuts(Record):
    """What was done to one block.

    Args:
        index: its place in the original model.
        widths: of the cut layer, as the saved configuration names them.
        tuned: how reconstruction went; None without.
        added: parameters that biases added.
    """

    index: int
    widths: Widths
    units: list[UnitCut] = field(default_factory=list)
    weights: list[WeightCut] = field(default_factory=list)
    tuned: Tuned | None = None
    added: int = 0


def cut_block(
    block: Block,
    rules: Rules,
    budget: MemoryBudget,
    gradients: LayerGradients | None = None,
    weights: LossWeights | None = None,
) -> BlockCuts:
    """Cuts a block in place.

    Args:
        gradients: of the whole model's loss, where the rules need them.
        weights: of errors while the block is tuned, see `reconstruct`.
    """
    checkpoint = block.streamed.checkpoint
    done = BlockCuts(block.index, {})
    if rules.bias_flags:
        done.added = add_biases(block.layer, checkpoint, rules.bias_flags)
    if block.index not in rules.protected:
        hand_over(block, gradients, rules.gradient_needs)
        done.units = drop_sub_blocks(block, rules.dropped)
        units = _gradual_units(block, rules)
        cuts = cut_units(block, rules.unit_kinds, rules.units) if rules.unit_kinds else []
        if units is not None:
            for cut in cuts:
                units.take(cut.site, cut.keep, cut.scores)
        done.units += cuts
        masks: Gradual | None = units
        if rules.weight_method is not None:
            sparsity = rules.weight_sparsity(block.index)
            if rules.tuning is not None and rules.masks == "gradual":
                masks = GradualWeights(block, rules.pattern, sparsity)
            done.weights = cut_weights(
                block, rules.weight_method, rules.pattern, sparsity, rules.sequential, rules.target
            )
        if rules.tuning is not None and (done.units or done.weights):
            done.tuned = reconstruct(block, rules.tuning, budget, masks, weights)
            done.weights = recounted(done.weights, block)
    done.widths = layer_widths(block.layer, checkpoint.family, checkpoint.config, checkpoint.head_dim)
    return done


def _gradual_units(block: Block, rules: Rules) -> GradualUnits | None:
    """Units that go while the block is tuned; where weights go too, those are what goes gradually."""
    if rules.tuning is None or rules.masks != "gradual" or rules.weight_method is not None:
        return None
    # Removing KV groups changes what a query head is, so both can't be laid out on the whole block; nor can experts,
    # for which there are no zeros.
    kinds = rules.unit_kinds
    return None if {"kv_group", "query_head"} <= kinds or "expert" in kinds else GradualUnits(block)
