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
    """Those of them that are copied: they have entries, and its class neither computes nor ignores them."""
    ignored = _ignored(stored)
    return [key for key in _with_entries(stored) if not any(p.search(stored.targets[key]) for p in ignored)]


def left_out(stored: Stored) -> list[str]:
    """A note on tensors that the model's class ignores (heads that predict several tokens); empty without any."""
    ignored = _ignored(stored)
    gone = [key for key in _with_entries(stored) if any(p.search(stored.targets[key]) for p in ignored)]
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    return [f"not taken along, as its class doesn't load them: tensors {gone[0]}{more}"] if gone else []


def _ignored(stored: Stored) -> list[re.Pattern[str]]:
    return [re.compile(p) for p in getattr(stored.template, "_keys_to_ignore_on_load_unexpected", None) or ()]


def _with_entries(stored: Stored) -> list[str]:
    return [key for key in uncounted(stored) if stored.sizes[key] and not COMPUTED.search(key)]


def check_extras(stored: Stored) -> None:
    """Refuses tensors of layers that the model doesn't have.

    Raises:
        InputError: with the name of the first.
    """
    pattern = re.compile(rf"(^|\.){re.escape(stored.family.layers.rpartition('.')[2])}\.\d+\.")
    for key in unused(stored):
        if pattern.search(key):
            raise InputError(
                f"{stored.path}: holds tensor {key}, which a model of {stored.layers} layers as in its "
                "config.json doesn't use; correct config.json, or save the model without it"
            )


def read_extras(stored: Stored) -> dict[str, Tensor]:
    """Those that are copied, by their names on disk; mapped, so nothing is read before it is used."""
    found = {}
    for key in unused(stored):
        with safe_open(stored.files[key], framework="pt") as handle:
            found[key] = handle.get_tensor(key)
    return found
