"""Memory of a process now, and the most that it had."""

from __future__ import annotations

import threading

import psutil
import torch

from secateur.system import accelerator

SAMPLE_SECONDS = 0.02


class PeakMemory:
    """Memory of this process and its peaks: resident, by sampling; on accelerators what torch allocated."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if accelerator.counts_memory(device) else None
        self._peak = self._highest = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()  # a sample begun before a `take` must not bring the old peak back after it
        self._process = psutil.Process()
        if self._device is None:
            threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            with self._lock:
                self._peak = max(self._peak, self.now)

    @property
    def now(self) -> int:
        """Bytes held at this moment."""
        if self._device is not None:
            return accelerator.allocated_bytes(self._device) or 0
        return int(self._process.memory_info().rss)

    @property
    def peak(self) -> int:
        """The most since the last `take`."""
        if self._device is not None:
            return accelerator.peak_bytes(self._device)
        return max(self._peak, self.now)

    def take(self) -> int:
        """`peak`, which then starts over."""
        with self._lock:
            taken, self._peak = self.peak, 0
        if self._device is not None:
            accelerator.reset_peak(self._device)
        self._highest = max(self._highest, taken)
        return taken

    def close(self) -> None:
        self._stop.set()

    def __str__(self) -> str:
        return f"{self.now / 2**30:.2f} GiB, peak {max(self._highest, self.peak) / 2**30:.2f}"
