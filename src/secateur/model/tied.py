"""Tensors that a configuration ties, but whose files hold both, with different values.

`from_pretrained` keeps both then, whatever the configuration says, and so does Secateur: results say
`tie_word_embeddings: false`.
"""

from __future__ import annotations

import math

import torch
from safetensors import safe_open

from secateur.model.stored import Stored

ENTRIES = 2**24  # that are compared at once


def stored_twice(stored: Stored) -> dict[str, str]:
    """Tensors on disk that the configuration ties to others which are there too: the tied one -> the other."""
    tied = getattr(stored.template, "all_tied_weights_keys", None) or {}
    keys = {name: key for key, name in stored.targets.items()}
    return {keys[name]: keys[own] for name, own in tied.items() if name in keys and own in keys}


def stored_apart(stored: Stored) -> bool:
    """Whether any of these has values of its own."""
    return any(not _equal(stored, *pair) for pair in stored_twice(stored).items())


def _equal(stored: Stored, one: str, other: str) -> bool:
    with safe_open(stored.files[one], "pt") as first, safe_open(stored.files[other], "pt") as second:
        a, b = first.get_slice(one), second.get_slice(other)
        shape = a.get_shape()
        if shape != b.get_shape():
            return False
        rows = max(1, ENTRIES // max(1, math.prod(shape[1:])))
        return all(torch.equal(a[i : i + rows], b[i : i + rows]) for i in range(0, shape[0], rows))
