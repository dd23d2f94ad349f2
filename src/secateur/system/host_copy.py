"""Copies on the host that an accelerator makes while it works on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.system import accelerator


class HostCopy:
    """A tensor's copy on the host, in pinned memory where there is some; whoever wants it waits until it is whole.

    A tensor of the CPU is kept as it is.

    Args:
        value: contiguous, of any device.
    """

    def __init__(self, value: Tensor) -> None:
        self.nbytes = value.nbytes
        self._done: Any = None  # behind the copy, where that may still be going on
        pinned = accelerator.pinned_like(value) if value.device.type != "cpu" else None
        if pinned is None:
            self._pinned = False
            self._value = value.to("cpu", copy=value.device.type != "cpu")
            return
        self._pinned = True
        self._value = pinned.copy_(value, non_blocking=True)
        self._done = accelerator.event(value.device)

    def get(self) -> Tensor:
        """The copy, whole."""
        if self._done is not None:
            self._done.synchronize()
            self._done = None
        return self._value

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """A copy on a device, which for pinned memory nobody waits for: it comes after the one to the host there."""
        if self._pinned and device.type != "cpu":
            return self._value.to(device, dtype, non_blocking=True)
        return self.get().to(device, dtype)
