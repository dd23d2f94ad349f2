"""config.json for readers that know only the keys of transformers 4: without them they'd take a default."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from secateur.model.json_files import Json


def with_old_keys(config: Json) -> Json:
    """The configuration with `rope_theta`, `rope_scaling` and `torch_dtype` beside `rope_parameters` and `dtype`.

    Only where they mean the same: read with them, it must be what it is without.
    """
    new = config | ({"torch_dtype": config["dtype"]} if config.get("dtype") else {})
    old = _old_rope(config.get("rope_parameters") or {})
    if not old:
        return new
    both = new | old
    return both if _rope(both) == _rope(config) else new


def _old_rope(rope: Json) -> Json:
    """The old keys for one set of parameters; none where layers have sets of their own."""
    if "rope_theta" not in rope:
        return {}
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if scaling.get("rope_type", "default") == "default":
        return {"rope_theta": rope["rope_theta"], "rope_scaling": None} | _partial(rope)
    if scaling["rope_type"] == "longrope":  # its old reader wants these three keys and no other
        scaling = {"type": "longrope", **{k: rope[k] for k in ("short_factor", "long_factor") if k in rope}}
    return {"rope_theta": rope["rope_theta"], "rope_scaling": scaling} | _partial(rope)


def _partial(rope: Json) -> Json:
    return {k: rope[k] for k in ("partial_rotary_factor",) if k in rope}


def _rope(config: Json) -> Any:
    try:
        return AutoConfig.for_model(**config).to_dict().get("rope_parameters")
    except Exception:  # each configuration class raises its own kinds
        return None
