"""What `--quality` means: method, target and reconstruction, chosen together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from secateur.numerics.targets import Target

Masks = Literal["kept", "gradual"]
Window = Literal["half", "block"] | int
Objective = Literal["output", "loss", "predictions"]


class Preset(NamedTuple):
    """What a quality means; docs/quality.md has the figures and the cost of each.

    Args:
        weights: method for single weights.
        target: what a Linear is solved for, see `numerics.targets`.
        reconstruct: steps of block reconstruction.
        masks: whether zeros are found while a block is tuned, see `reconstruct.masks`.
        objective: what tuning makes small: the error of the block's output, that error weighed by what it costs the
            loss (`calibration.loss_weights`), or, behind the last block, that of the predictions
            (`reconstruct.objective`).
        general: sequences of general text for each one of the calibration text, so that repair doesn't learn that
            text by heart, see `pipeline.calibration`.
    """

    weights: str
    target: Target
    sequential: bool
    reconstruct: int
    masks: Masks = "kept"
    objective: Objective = "predictions"
    general: float = 0.0


PRESETS = {
    "fast": Preset("sparsegpt", "pruned", False, 0),
    "balanced": Preset("alps", "residual", True, 0, general=0.125),
    "best": Preset("alps", "residual", True, 360, "gradual", general=0.125),
}
