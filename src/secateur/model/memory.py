"""Whether a whole model can be loaded on this machine, and giving back what a layer has left behind."""

from __future__ import annotations

import ctypes
import sys

import psutil
import torch

# Weights, what loading needs beside them, and room for activations.
OVERHEAD = 1.5


def fits_in_memory(parameters: int, dtype: torch.dtype = torch.float32, bound: int | None = None) -> bool:
    """True if `parameters` of this dtype fit into what is free now, with some room left, and into `bound` bytes."""
    size = parameters * dtype.itemsize
    return OVERHEAD * size < psutil.virtual_memory().available and (bound is None or size <= bound)


def give_back() -> None:
    """Returns freed memory to the system, where the C library would keep it.

    Weights and activations of many sizes leave holes in glibc's heaps. Left alone they grow by most of a layer
    with every layer, so that the memory of a run depends on the model's depth.
    """
    if _trim is not None:
        _trim(0)


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
