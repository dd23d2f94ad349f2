"""Whether a whole model can be loaded on this machine."""

from __future__ import annotations

import psutil
import torch

# Weights, what loading needs beside them, and room for activations.
OVERHEAD = 1.5


def fits_in_memory(parameters: int, dtype: torch.dtype = torch.float32, bound: int | None = None) -> bool:
    """Tells whether weights fit into the memory that is free now, with half as much again left for everything else.

    Args:
        parameters: how many there are.
        dtype: of each.
        bound: bytes that the weights alone may have; None = no bound.
    """
    size = parameters * dtype.itemsize
    return OVERHEAD * size < psutil.virtual_memory().available and (bound is None or size <= bound)
