"""Whether a whole model can be loaded on this machine."""

from __future__ import annotations

import psutil
import torch

# Weights, what loading needs beside them, and room for activations.
OVERHEAD = 1.5


def fits_in_memory(parameters: int, dtype: torch.dtype = torch.float32) -> bool:
    """True if `parameters` of this dtype fit into what is free now, with some room left."""
    return OVERHEAD * parameters * dtype.itemsize < psutil.virtual_memory().available
