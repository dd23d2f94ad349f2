"""Copies on the host that an accelerator makes while it works on."""

from __future__ import annotations

from typing import Any

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
        self._done: Any = None
        pinned = accelerator.pinned_like(value) if value.device.type != "cpu" else None
        if pinned is None:
            self._value = value.to("cpu", copy=value.device.type != "cpu")
            return
        self._value = pinned.copy_(value, non_blocking=True)
        self._done = accelerator.event(value.device)

    def get(self) -> Tensor:
        """The copy; `.to(device, non_blocking=True)` of it doesn't wait either."""
        if self._done is not None:
            self._done.synchronize()
            self._done = None
        return self._value
