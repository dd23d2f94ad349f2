"""How many entries of a checkpoint aren't zero, read from its files."""

from __future__ import annotations

import torch
from safetensors import safe_open

from secateur.model.checkpoint import Checkpoint
from secateur.model.extras import uncounted
from secateur.model.tied import stored_twice

AT_ONCE = 32  # tensors; what of a file has been read stays mapped until it's closed


def count_nonzero(checkpoint: Checkpoint) -> int:
    """Of all tensors that are used; what is stored twice and tied counts once."""
    copies, total = {*stored_twice(checkpoint), *uncounted(checkpoint)}, 0
    for file in sorted(set(checkpoint.files.values())):
        names = [name for name, own in checkpoint.files.items() if own == file and name not in copies]
        for first in range(0, len(names), AT_ONCE):
            with safe_open(file, framework="pt") as handle:
                total += sum(int(torch.count_nonzero(handle.get_tensor(n))) for n in names[first : first + AT_ONCE])
    return total


def share_of_zeros(checkpoint: Checkpoint, index: int) -> float:
    """The fraction of the entries of a layer's matrices that are zeros."""
    zeros = entries = 0
    for name in checkpoint.by_layer.get(index, []):
        with safe_open(checkpoint.files[name], framework="pt") as handle:
            value = handle.get_tensor(name)
        if value.dim() > 1:
            zeros += value.numel() - int(torch.count_nonzero(value))
            entries += value.numel()
    return zeros / max(1, entries)
