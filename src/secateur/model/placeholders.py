"""Empty tensors in the place of removed sub-blocks.

A stock class knows nothing of `skip` in a configuration: it would build the sub-block that was removed, find no
tensors for it, and leave it with random numbers. An empty tensor of that name makes it fail instead, since the shapes
differ. The bundled modelling file passes over them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.model.architectures import Family, join
from secateur.model.json_files import Json


def placeholders(family: Family, config: Json, place: int) -> dict[str, Tensor]:
    """Those of one layer, by their names in memory.

    Args:
        config: as in config.json.
        place: of the layer in that model.
    """
    skipped = (config.get("per_layer_config") or {}).get(str(place), {}).get("skip", ())
    return {f"{family.layers}.{place}.{_weight(family, block)}": torch.empty(0) for block in skipped}


def _weight(family: Family, block: str) -> str:
    """The weight that every layer of a stock model has in this sub-block."""
    if block == "attention":
        return join(family.attention.path, family.attention.o, "weight")
    if family.experts is not None:
        return join(family.experts.router, "weight")
    return join(family.ffn.path, family.ffn.down, "weight")
