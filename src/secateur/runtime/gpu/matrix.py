"""A packed matrix in a GPU's memory, as it is stored on disk, and its products by Triton's kernels."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import InputError
from secateur.runtime.format import Packed, counts

HALF = {torch.bfloat16: "bf16", torch.float16: "fp16"}
MOST = 16  # rows of x that the kernel for several takes; a tensor core takes no fewer, so what is missing is padded
FEW = (16, 32)  # rows of W, bytes of the bitmap: the tile of that kernel
TILES = ((4, 128), (8, 64), (16, 32))  # the same of the kernel for one row of x, and of the one that unpacks
VARIANT = "triton"


def interpreted() -> bool:
    """Whether Triton was told to run kernels on the CPU, step by step."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


def variant_of(tile: tuple[int, int]) -> str:
    """The name of kernels with a tile, as a `Choice` has it."""
    return f"{VARIANT} {tile[0]}x{tile[1]}"


def tile_of(variant: str) -> tuple[int, int] | None:
    """The tile of kernels with this name; None for another name."""
    return next((tile for tile in TILES if variant_of(tile) == variant), None)


class DeviceMatrix:
    """W (rows, columns) of bf16 or fp16 without its zeros, with an optional bias: runtime/matrix.py for a GPU.

    Args:
        packed: its parts fit together, or it wouldn't be there: kernels trust them.
        bias: (rows,), or None.
        device: where it is, and where x is.
        tile: one of `TILES`.
    """

    def __init__(self, packed: Packed, bias: Tensor | None, device: torch.device, tile: tuple[int, int]) -> None:
        assert packed.values.dtype in HALF
        self.rows, self.columns, self.dtype = packed.rows, packed.columns, packed.dtype
        self.kind, self.variant, self.limit = HALF[packed.dtype], variant_of(tile), MOST
        self.kept, self.tile, self.device = packed.values.shape[0], tile, device
        stored = packed.values if self.kept else torch.zeros(1, dtype=packed.dtype)  # there's no address of nothing
        self.values, self.bitmap = stored.to(device, copy=True), packed.bitmap.to(device, copy=True)
        ends = counts(packed.bitmap).cumsum(0)
        self.starts = F.pad(ends, (1, 0))[:-1].to(device)
        self._bias = torch.zeros(1, device=device) if bias is None else bias.detach().to(device, torch.float32)
        self.bias = None if bias is None else bias.detach().to(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceMatrix:
        return self  # never changes

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(tensor.nbytes for tensor in (self.values, self.bitmap, self.starts, self._bias))

    def times(self, x: Tensor) -> Tensor:
        """x W' + bias for x (..., columns) on its device; sums are float32, the result has the dtype of x.

        Up to `MOST` rows of x in W's dtype go through a kernel; for others W is unpacked and multiplied by torch.

        Raises:
            InputError: x has another width or lies on another device: kernels would read beyond its ends.
        """
        if x.shape[-1] != self.columns or x.device != self.values.device:
            raise InputError(
                f"an input of width {x.shape[-1]} on {x.device} doesn't fit a matrix of {self.columns} columns "
                f"on {self.values.device}"
            )
        count = x.numel() // max(1, self.columns)
        if not 0 < count <= MOST or x.dtype != self.dtype or not self.rows:
            return F.linear(x, self.dense(dtype=x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        x = x.contiguous()
        y = torch.empty((*x.shape[:-1], self.rows), dtype=x.dtype, device=x.device)
        self.multiply(x, y, count)
        return y

    def multiply(self, x: Tensor, y: Tensor, count: int) -> None:
        """y = x W' + bias, for contiguous x (count, columns) and y (count, rows); y may be of another float dtype."""
        from secateur.runtime.gpu import kernels

        sizes = (self.rows, self.columns, self.bitmap.shape[1])
        given = (self.values, self.bitmap, self.starts, self._bias, x, y, *sizes)
        with current(self.device):
            if count == 1:
                kernels.gemv[(-(-self.rows // self.tile[0]),)](*given, *self.tile, BIAS=self.bias is not None)
            else:
                kernels.gemm[(-(-self.rows // FEW[0]),)](*given, count, *FEW, MOST, BIAS=self.bias is not None)

    def dense(self, first: int = 0, last: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Rows of W as they were, (last - first, columns), in W's own dtype or in `dtype`."""
        from secateur.runtime.gpu import kernels

        last = self.rows if last is None else last
        out = torch.empty(max(0, last - first), self.columns, dtype=dtype or self.dtype, device=self.device)
        if out.numel():
            sizes = (first, last, self.columns, self.bitmap.shape[1])
            with current(self.device):
                blocks = -(-out.shape[0] // self.tile[0])
                kernels.unpack[(blocks,)](self.values, self.bitmap, self.starts, out, *sizes, *self.tile)
        return out


def current(device: torch.device) -> Any:
    """Kernels go to the current device, which needn't be the one that is meant."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
