"""Freed memory, given back: what the C library does with the tensors of one layer before the next is read."""

from __future__ import annotations

import ctypes
import os
import sys

LARGE = 4 << 20  # bytes
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def give_back() -> None:
    """Returns freed memory to the system, where the C library would keep it.

    Weights and activations of many sizes leave holes in glibc's heaps. Left alone they grow by most of a layer
    with every layer, so that the memory of a run depends on the model's depth.
    """
    if _trim is not None:
        _trim(0)


def keep_large_apart() -> None:
    """Gives every tensor of more than a few megabytes pages of its own, which go back as soon as it is freed.

    By default glibc learns from the first large tensor that is freed to take the next ones from its heaps, whose
    holes make the memory of a run grow and differ from run to run. Fresh pages cost time, so torch is told to take
    them 2 MiB at a time. For a process of our own, before it imports torch: where we are only imported, the host's
    allocator is left alone.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if _option is not None:
        _option(_MMAP_THRESHOLD, LARGE)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_trim, _option = getattr(_libc, "malloc_trim", None), getattr(_libc, "mallopt", None)
