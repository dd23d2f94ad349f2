"""What `--quality` means: method, target and reconstruction, chosen together."""

from __future__ import annotations

from typing import Literal, NamedTuple

from secateur.numerics.targets import Target

Masks = Literal["kept", "gradual"]
Window = Literal["half", "block"] | int
Objective = Literal["output", "loss"]


class Preset(NamedTuple):
    """What a quality means; docs/quality.md has the figures and the cost of each.

    Args:
        weights: method for single weights.
        target: what a Linear is solved for, see `numerics.targets`.
        reconstruct: steps of block reconstruction.
        masks: whether zeros are found while a block is tuned, see `reconstruct.masks`.
        objective: what tuning makes small, see `calibration.loss_weights`.
    """

    weights: str
    target: Target
    sequential: bool
    reconstruct: int
    masks: Masks = "kept"
    objective: Objective = "output"


PRESETS = {
    "fast": Preset("sparsegpt", "pruned", False, 0),
    "balanced": Preset("alps", "residual", True, 0),
    "best": Preset("alps", "residual", True, 400, "gradual"),
}
