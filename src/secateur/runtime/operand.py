"""A matrix as kernels multiply with it: activations are brought as they want them, and their sums back."""

from __future__ import annotations

import threading
from ctypes import Array, addressof, c_char, c_int64

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.runtime.kernels.ir import WORD, Spec
from secateur.runtime.kernels.jit import Kernel, kernel

# Rows that a thread takes at a time: long pieces keep what was fetched ahead, short ones leave none to wait for.
MOST_ROWS, SHARES = 256, 4
_LINE = 64  # bytes of a line of the cache
_spaces = threading.local()


class Operand:
    """W (rows, columns) in memory, for a few rows of x.

    Args:
        layer: the structure that kernels read; whoever made it keeps what it points to.
        variant, kind: of the kernels, and of the stored values.
        batch: rows of x that a kernel takes at most.
        together: rows of W that a thread can't share with another.
    """

    def __init__(
        self, layer: Array[c_int64], rows: int, columns: int, variant: str, kind: str, batch: int, together: int
    ) -> None:
        self.layer, self.address = layer, addressof(layer)
        self.rows, self.columns = rows, columns
        self.variant, self.kind, self.batch, self.together = variant, kind, batch, together
        self._even = not columns % WORD and not rows % 8
        self._kernels: dict[int, Kernel] = {}

    def times(self, x: Tensor) -> Tensor:
        """x W' + bias for x (..., columns), in the dtype of x; sums are float32."""
        # This runs for every Linear and token: a microsecond here is a tenth of a millisecond of each token.
        count = x.numel() // self.columns
        x = x.contiguous()
        threads = torch.get_num_threads()
        rows = piece(self.rows, threads, self.together)
        if x.dtype == torch.bfloat16 and self._even and self.kernel(1).run_bf16 is not None:
            y = torch.empty((*x.shape[:-1], self.rows), dtype=torch.bfloat16)
            self._multiply_bf16(x, y, count, threads, rows)
            return y
        x32 = self._laid_out(x.to(torch.float32).view(count, self.columns)).contiguous()
        y32 = torch.empty(*x.shape[:-1], self.rows, dtype=torch.float32)
        x_at, y_at = x32.data_ptr(), y32.data_ptr()
        for first in range(0, count, self.batch):
            run = self.kernel(min(self.batch, count - first)).run
            run(self.address, x_at + 4 * first * x32.shape[1], y_at + 4 * first * self.rows, threads, rows)
        return y32 if x.dtype == torch.float32 else y32.to(x.dtype)

    def kernel(self, count: int) -> Kernel:
        """For so many rows of x; 0: the one that unpacks."""
        if count not in self._kernels:
            self._kernels[count] = kernel(Spec(self.variant, self.kind, count))
        return self._kernels[count]

    def _multiply_bf16(self, x: Tensor, y: Tensor, count: int, threads: int, rows: int) -> None:
        x_at, y_at = x.data_ptr(), y.data_ptr()
        wide = _room(4 * min(self.batch, count) * (self.columns + self.rows))
        for first in range(0, count, self.batch):
            n = min(self.batch, count - first)
            inputs, outputs = n * self.columns, n * self.rows
            places = (x_at + 2 * first * self.columns, y_at + 2 * first * self.rows)
            run = self.kernel(n).run_bf16
            assert run is not None
            run(self.address, *places, threads, rows, wide, wide + 4 * inputs, inputs, outputs)

    def _laid_out(self, x: Tensor) -> Tensor:
        """Whole words of columns; for `split` kernels of each so many the even ones before the odd ones."""
        split = Spec(self.variant, self.kind, 1).split
        if self.columns % WORD:
            x = F.pad(x, (0, -self.columns % WORD))
        return x.view(x.shape[0], -1, split // 2, 2).transpose(2, 3).flatten(1) if split else x


def _room(size: int) -> int:
    """The address of so many bytes that this thread uses again and again."""
    if getattr(_spaces, "size", 0) < size:
        _spaces.held, _spaces.size = (c_char * (size + _LINE))(), size
        _spaces.address = -(-addressof(_spaces.held) // _LINE) * _LINE
    return int(_spaces.address)


def piece(rows: int, threads: int, together: int) -> int:
    """Rows that a thread takes at a time, whole groups of those that belong together."""
    return max(together, min(MOST_ROWS, rows // (SHARES * threads)) // together * together)
