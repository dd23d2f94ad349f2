"""Models with zeros, for the tests of what zeros buy."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def prune_copy(source: Path, folder: Path, sparsity: float = 0.5) -> Path:
    """A copy of a model folder with the smallest entries of every Linear at zero."""
    shutil.copytree(source, folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if tensor.dim() == 2 and any(part in name for part in ("proj.", ".c_", "attn.")):
                tensors[name] = without_smallest(tensor, sparsity)
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


def without_smallest(W: Tensor, sparsity: float) -> Tensor:
    size = W.abs().float()
    border = size.flatten().kthvalue(max(1, round(sparsity * W.numel()))).values
    return W.masked_fill(size <= border, 0)
