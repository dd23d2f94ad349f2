"""Tensors in a folder that its model doesn't use.

What lies outside the layers (a pooler, a classification head) is copied as it is. Tables that a model computes by
itself are left out, as `from_pretrained` does. Anything else inside the layers, or layers beyond those that the
configuration counts, would mean something else once the model is cut: that is refused.
"""

from __future__ import annotations

import re

from safetensors import safe_open
from torch import Tensor

from secateur.errors import InputError
from secateur.model.stored import Stored

COMPUTED = re.compile(
    r"(rotary_emb\.(inv_freq|cos_cached|sin_cached)|\.attn\.(masked_)?bias|attention\.(masked_)?bias|position_ids)$"
)


def uncounted(stored: Stored) -> list[str]:
    """Names on disk of all tensors that no parameter or buffer is made of."""
    state = stored.template.state_dict()
    return [key for key, name in stored.targets.items() if name not in state]


def unused(stored: Stored) -> list[str]:
    """Those of them that are copied: outside the layers, with entries, neither computed nor ignored by the class."""
    inner = set(in_layers(stored))
    return [key for key in _unknown(stored) if key not in inner]


def in_layers(stored: Stored) -> list[str]:
    """Those that belong to layers, of which the model makes no use: they can't be taken along."""
    pattern = re.compile(rf"(^|\.){re.escape(stored.family.layers.rpartition('.')[2])}\.\d+\.")
    return [key for key in _unknown(stored) if pattern.search(key)]


def left_out(stored: Stored) -> list[str]:
    """Notes on tensors that a result lacks: what the class ignores (heads that predict several tokens), and what of
    its layers the model doesn't use; empty without any."""
    unknown = set(_unknown(stored))
    ignored = [key for key in _with_entries(stored) if key not in unknown]
    reasons = {"its class doesn't load them": ignored, "the model doesn't use them": in_layers(stored)}
    return [f"not taken along, as {why}: tensors {_named(keys)}" for why, keys in reasons.items() if keys]


def _named(keys: list[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def _unknown(stored: Stored) -> list[str]:
    ignored = [
        re.compile(pattern) for pattern in getattr(stored.template, "_keys_to_ignore_on_load_unexpected", None) or ()
    ]
    return [key for key in _with_entries(stored) if not any(p.search(stored.targets[key]) for p in ignored)]


def _with_entries(stored: Stored) -> list[str]:
    return [key for key in uncounted(stored) if stored.sizes[key] and not COMPUTED.search(key)]


def check_extras(stored: Stored, way_out: str = "") -> None:
    """Refuses tensors of layers that the model doesn't have.

    Args:
        way_out: how the caller can be told to go on without them.

    Raises:
        InputError: with the name of the first.
    """
    for key in in_layers(stored):
        raise InputError(
            f"{stored.path}: holds tensor {key}, which a model of {stored.layers} layers as in its config.json "
            f"doesn't use; correct config.json, or {way_out or 'save the model without it'}"
        )


def read_extras(stored: Stored) -> dict[str, Tensor]:
    """Those that are copied, by their names on disk; mapped, so nothing is read before it is used."""
    found = {}
    for key in unused(stored):
        with safe_open(stored.files[key], framework="pt") as handle:
            found[key] = handle.get_tensor(key)
    return found
