"""The configuration of a checkpoint that has lost whole layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from secateur.errors import UnsupportedModelError
from secateur.model.json_files import Json

# What configurations say once per layer, in order.
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")


def shallow_config(config: Any, kept: Sequence[int]) -> Json:
    """`config` as a plain dict, for a model of the layers `kept` alone, renumbered from 0.

    Args:
        config: the `transformers` configuration of the whole model.
        kept: layer indices, ascending.

    Raises:
        UnsupportedModelError: the architecture computes with the place of a layer.
    """
    new = copy.deepcopy(config.to_dict())
    if list(kept) == list(range(config.num_hidden_layers)):
        return new
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise UnsupportedModelError(
            "scale_attn_by_inverse_layer_idx: attention is scaled by each layer's place, "
            "so layers can't be dropped; drop sub-blocks or channels instead"
        )
    count = type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for key in PER_LAYER:
        if new.get(key) is not None:
            new[key] = [new[key][index] for index in kept]
    if "decoder_sparse_step" in new:
        step, dense = new["decoder_sparse_step"], new["mlp_only_layers"]
        new["mlp_only_layers"] = [at for at, i in enumerate(kept) if i in dense or (i + 1) % step]
        new["decoder_sparse_step"] = 1
    if new.get("per_layer_config"):
        own = {int(index): entry for index, entry in new["per_layer_config"].items()}
        new["per_layer_config"] = {str(at): own[i] for at, i in enumerate(kept) if i in own}
    new[count] = len(kept)
    return new
