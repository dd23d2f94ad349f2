"""Tensors that a configuration ties, but whose files hold both, with different values.

`from_pretrained` keeps both then, whatever the configuration says, and so does Secateur: results say
`tie_word_embeddings: false`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from secateur.model.checkpoint import Checkpoint

ENTRIES = 2**24  # that are compared at once


def stored_twice(checkpoint: Checkpoint) -> dict[str, str]:
    """Tensors on disk that the configuration ties to others which are there too: the tied one -> the other."""
    tied = getattr(checkpoint.template, "all_tied_weights_keys", None) or {}
    stored = {name: key for key, name in checkpoint.targets.items()}
    return {stored[name]: stored[own] for name, own in tied.items() if name in stored and own in stored}


def stored_apart(checkpoint: Checkpoint) -> bool:
    """Whether any of these has values of its own."""
    return any(not _equal(checkpoint, *pair) for pair in stored_twice(checkpoint).items())


def _equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    with safe_open(checkpoint.files[one], "pt") as first, safe_open(checkpoint.files[other], "pt") as second:
        a, b = first.get_slice(one), second.get_slice(other)
        shape = a.get_shape()
        if shape != b.get_shape():
            return False
        rows = max(1, ENTRIES // max(1, math.prod(shape[1:])))
        return all(torch.equal(a[i : i + rows], b[i : i + rows]) for i in range(0, shape[0], rows))
