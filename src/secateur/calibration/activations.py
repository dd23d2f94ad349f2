"""Hidden states of the calibration sequences between two blocks, in memory or in a work file.

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


class MemoryBudget:
    """Bytes of activations that may stay in memory, shared by all streams of a run."""

    def __init__(self, total: int | None) -> None:
        self.left = total

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


class Activations:
    """Batches of hidden states (batch, tokens, hidden), addressed by index, overwritten in place.

    Args:
        budget: who says whether a batch may stay in memory.
        file: where the others go; created on first use, deleted by `close`.
    """

    def __init__(self, budget: MemoryBudget, file: Path | None = None) -> None:
        self._budget = budget
        self._file = file
        self._memory: dict[int, Tensor] = {}
        self._spilled: dict[int, tuple[int, torch.Size, torch.dtype]] = {}
        self._end = 0

    def __len__(self) -> int:
        return len(self._memory) + len(self._spilled)

    def beside(self, name: str) -> Path | None:
        """A work file next to this one's, for another set of hidden states."""
        return None if self._file is None else self._file.with_name(f"{name}.bin")

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __setitem__(self, index: int, value: Tensor) -> None:
        value = value.detach().to("cpu", copy=value.device.type != "cpu").contiguous()
        if index in self._memory:
            self._memory[index] = value
        elif index in self._spilled or not self._budget.take(value.nbytes):
            self._write(index, value)
        else:
            self._memory[index] = value

    def __getitem__(self, index: int) -> Tensor:
        if index in self._memory:
            return self._memory[index]
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
        for value in self._memory.values():
            self._budget.give(value.nbytes)
        self._memory.clear()
        self._spilled.clear()
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def _bytes_of(value: Tensor) -> Any:
    """The memory of a contiguous CPU tensor, as a buffer."""
    return value.view(torch.uint8).flatten().numpy().data
