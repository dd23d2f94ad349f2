"""Memory of the simulated device: what lives on it, the most that did, and an end to it."""

from __future__ import annotations

import weakref
from typing import Any

import torch


class Memory:
    """Bytes of the storages that tensors of the device share.

    Args:
        total: bytes that the device has; None = no end.
    """

    def __init__(self) -> None:
        self.total: int | None = None
        self.now = self.peak = 0
        self._held: dict[int, tuple[int, int]] = {}  # storage -> (bytes, tensors)

    def hold(self, tensor: Any, inner: torch.Tensor) -> None:
        """Counts a storage for as long as one of its tensors lives.

        Raises:
            torch.OutOfMemoryError: it doesn't fit.
        """
        storage = inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known, users = self._held.get(key, (0, 0))
        if self.total is not None and self.now + size - known > self.total:
            raise torch.OutOfMemoryError(f"sim out of memory: tried to allocate {size} bytes of {self.total}")
        self._held[key] = size, users + 1
        self.now += size - known
        self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self._let_go, key).atexit = False

    def _let_go(self, key: int) -> None:
        size, users = self._held[key]
        if users > 1:
            self._held[key] = size, users - 1
        else:
            del self._held[key]
            self.now -= size
