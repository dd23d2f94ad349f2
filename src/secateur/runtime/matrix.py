"""A packed matrix in memory, as kernels want it, and its products.

matrix = Matrix(packed, bias)
y = matrix.times(x)        # (n, columns) -> (n, rows): as F.linear(x, W, bias)
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import InputError
from secateur.runtime.format import WORD, Packed, unpack
from secateur.runtime.kernels.jit import variants
from secateur.runtime.layouts import lay_out
from secateur.runtime.operand import Operand, piece

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int8: "int8"}
TILE_BYTES, TILE_ROWS = 4 << 20, 64  # of unpacked weights at a time: they stay in the cache
_scratches = threading.local()
KERNEL_ROWS = 64  # up to which kernels multiply, where nothing was measured


class Matrix:
    """W (rows, columns) without its zeros, with an optional bias; its own copy of everything.

    Args:
        packed: its parts fit together, or it wouldn't be there: kernels trust them.
        bias: (rows,), or None.
        limit: rows of x up to which kernels multiply, some at a time; beyond, W is unpacked tile by tile.
        wide: tiles are multiplied in float32, whatever x has: a processor without instructions for 16 bits is
            several times faster then.
        variant: of the kernels; by default the fastest that this processor runs with any matrix; `slots` takes only
            what layouts.slots_fit allows.
    """

    def __init__(
        self,
        packed: Packed,
        bias: Tensor | None = None,
        limit: int = KERNEL_ROWS,
        wide: bool = False,
        variant: str | None = None,
    ) -> None:
        if bias is not None and (bias.shape != (packed.rows,) or not bias.is_cpu):
            raise InputError(
                f"a bias of {tuple(bias.shape)} on {bias.device} doesn't fit {packed.rows} rows on a CPU"
            )
        self.rows, self.columns, self.dtype, self.group = packed.rows, packed.columns, packed.dtype, packed.group
        self.limit, self.wide = limit, wide
        self.bias = bias
        self.kind = NAMES[packed.values.dtype]
        self.variant = variant or next(iter(variants()), None)
        self.words = -(-self.columns // WORD)
        self.kept = packed.values.shape[0]
        self.layout = lay_out(packed, self.variant)
        self._plain = None if self.variant else packed
        self.scales = None if packed.scales is None else packed.scales.clone(memory_format=torch.contiguous_format)
        given = torch.zeros(1) if bias is None else bias.detach()
        self._bias = given.to(torch.float32, copy=True)
        if self.variant:
            layer, batch, together = self._fields(), self.layout.batch, self.layout.together
            self._operand = Operand(layer, self.rows, self.columns, self.variant, self.kind, batch, together)

    def __deepcopy__(self, memo: dict[int, Any]) -> Matrix:
        return self  # never changes, and addresses point into it

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        held = (*self.layout.tensors, self.scales, self._bias)
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def _fields(self, first: int = 0, rows: int | None = None) -> ctypes.Array[ctypes.c_int64]:
        """The structure that kernels read, for rows from `first` on, with which woven rows begin."""
        fields = self.layout.fields(first) | {
            "bias": self._bias.data_ptr(),
            "scales": 0 if self.scales is None else self.scales.data_ptr(),
            "bias_step": 0 if self.bias is None else 4,
            "rows": self.rows if rows is None else rows,
            "columns": self.columns,
            "groups": 0 if self.scales is None else self.scales.shape[1],
            "group_words": self.group // WORD if self.group else max(self.words, 1),
        }
        names = self.layout.names
        return (ctypes.c_int64 * len(names))(*(fields[name] for name in names))

    @property
    def values(self) -> Tensor:
        """The kept ones, in no order that matters."""
        return self.layout.values

    def times(self, x: Tensor) -> Tensor:
        """x W' + bias for x (..., columns) in a float dtype; sums are float32, the result has the dtype of x.

        Raises:
            InputError: x has another width, or lies where kernels can't read it.
        """
        if x.shape[-1] != self.columns or not x.is_cpu:
            raise InputError(self._refusal(x))
        count = x.numel() // max(1, self.columns)
        taken = self.variant is not None and self.layout.dtype in (None, x.dtype)
        if not 0 < count <= self.limit or not taken or not self.rows or not self.columns:
            y = self.by_tiles(x.reshape(-1, self.columns) if self.columns else x.flatten(0, -2))
            return y.view(*x.shape[:-1], self.rows)
        return self._operand.times(x)

    def _refusal(self, x: Tensor) -> str:
        if not x.is_cpu:
            return f"compressed weights run on a CPU, not on {x.device}; load with runtime='dense'"
        return f"an input of width {x.shape[-1]} doesn't fit a matrix of {self.columns} columns"

    def by_tiles(self, x: Tensor, wide: bool | None = None) -> Tensor:
        """The same by unpacking a part of W at a time, for many rows.

        Args:
            wide: multiply in float32, whatever x has; by default as the matrix was told.
        """
        wide = self.wide if wide is None else wide
        dtype = torch.float32 if wide else x.dtype
        given, bias = x.to(dtype), None if self.bias is None else self.bias.to(dtype)
        step = max(TILE_ROWS, TILE_BYTES // max(1, WORD * self.words * dtype.itemsize))
        step -= step % self.layout.together
        if step >= self.rows or self._plain is not None:
            return F.linear(given, self.dense(dtype=dtype), bias).to(x.dtype)
        y = x.new_empty(x.shape[0], self.rows)
        stored = _scratch("stored", (step, WORD * self.words), self.values.dtype)
        tile = _scratch("tile", (step, self.columns), dtype)
        for first in range(0, self.rows, step):
            last = min(first + step, self.rows)
            self._unpack(first, last, stored, tile)
            part = None if bias is None else bias[first:last]
            y[:, first:last] = F.linear(given, tile[: last - first], part)
        return y

    def dense(self, first: int = 0, last: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Rows of W as they were, (last - first, columns), in W's own dtype or in `dtype`."""
        last = self.rows if last is None else last
        dtype = dtype or self.dtype
        if self._plain is not None:
            return unpack(self._plain)[first:last].to(dtype)
        together = self.layout.together
        begin = first // together * together
        out = torch.empty(max(0, last - begin), self.columns, dtype=dtype)
        if out.numel():
            rows = -(-(last - begin) // together) * together
            self._unpack(begin, last, torch.empty(rows, WORD * self.words, dtype=self.values.dtype), out)
        return out[first - begin :]

    def _unpack(self, first: int, last: int, stored: Tensor, out: Tensor) -> None:
        """Rows from `first`, with which woven rows begin, to `last` into the first ones of `out` (., columns).

        Args:
            stored: room for all woven rows and whole words of them, in the dtype of the values.
        """
        count = -(-(last - first) // self.layout.together) * self.layout.together
        fits = out.dtype == stored.dtype and self.columns == stored.shape[1] and count <= out.shape[0]
        if fits and self.scales is None:
            stored = out
        fields = self._fields(first, count)
        threads = torch.get_num_threads()
        run = self._operand.kernel(0).run
        run(ctypes.addressof(fields), 0, stored.data_ptr(), threads, piece(count, threads, self.layout.together))
        if stored is out:
            return
        found = stored[: last - first, : self.columns]
        if self.scales is not None:
            scales = self.scales[first:last].repeat_interleave(min(self.group or self.columns, self.columns), 1)
            found = (found.float() * scales[:, : self.columns]).to(self.dtype)
        out[: last - first].copy_(found)


def _scratch(name: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Memory that this thread uses again and again: new pages cost more than unpacking what goes there."""
    size, held = shape[0] * shape[1] * dtype.itemsize, getattr(_scratches, name, None)
    if held is None or held.numel() < size:
        with torch.inference_mode(False):  # whoever writes to it next may be in another mode
            held = torch.empty(size, dtype=torch.uint8)
        setattr(_scratches, name, held)
    return held[:size].view(dtype).view(shape)
