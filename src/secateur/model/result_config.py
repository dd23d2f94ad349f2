"""The configuration of a cut checkpoint: without the layers that went, and with the widths that are left."""

from __future__ import annotations

from secateur.model.checkpoint import Checkpoint
from secateur.model.depth import shallow_config
from secateur.model.detected_config import detected_config
from secateur.model.json_files import Json
from secateur.model.uneven import Widths, uneven_config, uniform_config


def new_config(
    checkpoint: Checkpoint, kept: list[int] | tuple[int, ...], widths: dict[int, Widths], flags: tuple[str, ...] = ()
) -> Json:
    """config.json of a cut checkpoint: stock where the stock class takes it, else with per-layer widths.

    Args:
        kept: layers that stay.
        widths: new place of each -> its `layer_widths`.
        flags: configuration flags that are on now.
    """
    if checkpoint.family.anatomies:
        return detected_config(checkpoint, kept, widths)
    config = shallow_config(checkpoint.config, kept) | dict.fromkeys(flags, True)
    stock = uniform_config(config, checkpoint.family, widths, checkpoint.head_dim)
    return stock or uneven_config(config, checkpoint.family, widths, checkpoint.head_dim)
