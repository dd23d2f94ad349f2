"""Whether a whole model can be loaded on this machine."""

from __future__ import annotations

import psutil
import torch

# Weights, what loading needs beside them, and room for activations.
OVERHEAD = 1.5


def fits_in_memory(parameters: int, dtype: torch.dtype = torch.float32, bound: int | None = None) -> bool:
    """True if `parameters` of this dtype fit into what is free now, with some room left, and into `bound` bytes."""
    size = parameters * dtype.itemsize
    return OVERHEAD * size < psutil.virtual_memory().available and (bound is None or size <= bound)
