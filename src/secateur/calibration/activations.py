"""Hidden states of the calibration sequences between two blocks: on the accelerator, in memory, or in a work file.

What an accelerator has made stays there as long as there is room. The rest goes to the host while it works on.

Plain reads and writes are used for what doesn't fit, not a memory map: mapped pages count as resident
memory until the system takes them back, so a map would break the bound that `--memory` promises.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import ResourceError
from secateur.system.host_copy import HostCopy


class MemoryBudget:
    """Bytes of activations that may stay in memory, shared by all streams of a run.

    Args:
        total: of the host; None = all.
        on_device: of the accelerator that makes them.
    """

    def __init__(self, total: int | None, on_device: int = 0) -> None:
        self.left = total
        self.left_on_device = on_device

    def take(self, size: int) -> bool:
        """True if `size` bytes still fit (they're then taken)."""
        if self.left is None:
            return True
        if size > self.left:
            return False
        self.left -= size
        return True

    def give(self, size: int) -> None:
        if self.left is not None:
            self.left += size

    def take_on_device(self, size: int) -> bool:
        """True if `size` bytes still fit where they are (they're then taken)."""
        if size > self.left_on_device:
            return False
        self.left_on_device -= size
        return True

    def give_on_device(self, size: int) -> None:
        self.left_on_device += size


class Activations:
    """Batches of hidden states (batch, tokens, hidden), addressed by index, overwritten in place.

    Args:
        budget: who says whether a batch may stay in memory.
        file: where the others go; created on first use, deleted by `close`.
    """

    def __init__(self, budget: MemoryBudget, file: Path | None = None) -> None:
        self._budget = budget
        self._file = file
        self._on_device: dict[int, Tensor] = {}
        self._memory: dict[int, HostCopy] = {}
        self._spilled: dict[int, tuple[int, torch.Size, torch.dtype]] = {}
        self._end = 0

    def __len__(self) -> int:
        return len(self._on_device) + len(self._memory) + len(self._spilled)

    def beside(self, name: str) -> Path | None:
        """A work file next to this one's, for another set of hidden states."""
        return None if self._file is None else self._file.with_name(f"{name}.bin")

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __setitem__(self, index: int, value: Tensor) -> None:
        value = value.detach().contiguous()
        if index in self._on_device:
            self._budget.give_on_device(self._on_device.pop(index).nbytes)
        if value.device.type != "cpu" and self._stays(index, value):
            return
        if index in self._memory or (index not in self._spilled and self._budget.take(value.nbytes)):
            self._memory[index] = HostCopy(value)
        else:
            self._write(index, HostCopy(value).get())

    def _stays(self, index: int, value: Tensor) -> bool:
        """Whether a value stays on its device; those that went to the host go there again."""
        if index in self._memory or index in self._spilled:
            return False
        if not self._budget.take_on_device(value.nbytes):
            return False
        self._on_device[index] = value
        return True

    def __getitem__(self, index: int) -> Tensor:
        if index in self._on_device:
            return self._on_device[index]
        if index in self._memory:
            return self._memory[index].get()
        offset, shape, dtype = self._spilled[index]
        out = torch.empty(shape, dtype=dtype)
        assert self._file is not None
        read = 0
        if self._file.is_file():
            with self._file.open("rb") as handle:
                handle.seek(offset)
                read = handle.readinto(_bytes_of(out))
        if read < out.nbytes:
            raise ResourceError(f"{self._file}: hidden states that the run had put there are lost")
        return out

    def to(self, index: int, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """A batch where it is wanted, without waiting where its memory allows that."""
        if index in self._memory:
            return self._memory[index].to(device, dtype)
        return self[index].to(device, dtype)

    def _write(self, index: int, value: Tensor) -> None:
        assert self._file is not None, "activations exceed the budget and there is no work file"
        if index not in self._spilled:
            self._spilled[index] = (self._end, value.shape, value.dtype)
            self._end += value.nbytes
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("r+b" if self._file.exists() else "w+b") as handle:
            handle.seek(self._spilled[index][0])
            handle.write(_bytes_of(value))

    def close(self) -> None:
        """Frees memory and disk."""
        for held in self._on_device.values():
            self._budget.give_on_device(held.nbytes)
        for value in self._memory.values():
            self._budget.give(value.nbytes)
        self._on_device.clear()
        self._memory.clear()
        self._spilled.clear()
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def _bytes_of(value: Tensor) -> Any:
    """The memory of a contiguous CPU tensor, as a buffer."""
    return value.view(torch.uint8).flatten().numpy().data
