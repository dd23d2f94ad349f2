"""What the C library does with freed memory: when it goes back to the system, and when it is used again."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LARGE = 32 << 20  # bytes; glibc takes no higher threshold
NEVER = (1 << 31) - 1  # bytes of free heap that are left as they are
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # of malloc.h
MOST = 65536  # glibc's own M_MMAP_MAX


def give_back() -> None:
    """Returns freed memory to the system, where the C library would keep it.

    Weights and activations of many sizes leave holes in glibc's heaps. Left alone they grow by most of a layer
    with every layer, so that the memory of a run depends on the model's depth.
    """
    if _trim is not None:
        _trim(0)


def keep_large_apart() -> None:
    """Gives tensors of more than `LARGE` bytes pages of their own, and keeps those of smaller ones for the next ones.

    By default glibc learns from the first large tensor that is freed to take the next ones from its heaps, whose
    holes make the memory of a run grow and differ from run to run. What is smaller comes again in every batch, and
    fresh pages for it cost as much time as what is computed in them; `give_back` returns them. Fresh pages of the
    large ones are taken 2 MiB at a time. For a process of our own, before it imports torch: where we are only
    imported, the host's allocator is left alone.
    """
    global _ours
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _ours = True
    _set(MMAP_THRESHOLD, LARGE)
    _set(TRIM_THRESHOLD, NEVER)


@contextmanager
def reusing_all() -> Iterator[None]:
    """Tensors of any size take the place of freed ones, as each step of a training has those of the one before.

    In a process of our own (`keep_large_apart`). `benchmarks/memory.py` measures what that saves.
    """
    if _ours:
        _set(MMAP_MAX, 0)
    try:
        yield
    finally:
        if _ours:
            _set(MMAP_MAX, MOST)
            give_back()


def _set(option: int, value: int) -> None:
    if _option is not None:
        _option(option, value)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_trim, _option = getattr(_libc, "malloc_trim", None), getattr(_libc, "mallopt", None)
_ours = False
