"""2:4 on a GPU's sparse tensor cores: torch's semi-structured tensors, two values of four and where they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.sparse import to_sparse_semi_structured

from secateur.runtime.format import Packed, unpack
from secateur.runtime.gpu.matrix import HALF

VARIANT = "2:4"
FEWEST = (32, 64)  # rows and columns of W, of which torch takes multiples


def fits(packed: Packed) -> bool:
    """Whether a matrix keeps at most two of every four columns, in a dtype and a shape that torch takes."""
    if packed.values.dtype not in HALF or packed.rows % FEWEST[0] or packed.columns % FEWEST[1]:
        return False
    bits = packed.bitmap.numpy()
    halves = np.bitwise_count(bits & 0x0F), np.bitwise_count(bits >> 4)
    return packed.rows > 0 and all(int(half.max(initial=0)) <= 2 for half in halves)


class SemiStructuredMatrix:
    """W (rows, columns) as runtime/matrix.py has it, for what `fits` says.

    Args:
        packed: the matrix.
        bias: (rows,), or None.
        device: where it is, and where x is.

    Raises:
        RuntimeError: torch doesn't take it on that device.
    """

    def __init__(self, packed: Packed, bias: Tensor | None, device: torch.device) -> None:
        self.rows, self.columns, self.dtype = packed.rows, packed.columns, packed.dtype
        self.kind, self.variant, self.limit = HALF[packed.dtype], VARIANT, 0
        self.kept = packed.values.shape[0]
        self.bias = None if bias is None else bias.detach().to(device)
        self.weight: Any = to_sparse_semi_structured(
            unpack(packed).to(device)
        )  # by cuSPARSELt or CUTLASS, as torch has it

    def __deepcopy__(self, memo: dict[int, Any]) -> SemiStructuredMatrix:
        return self  # never changes

    @property
    def values(self) -> Tensor:
        """The kept ones, and zeros where fewer than two of four were kept, in no order that matters."""
        return self.dense()

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        parts = (self.weight.packed, self.weight.meta, self.bias)
        return sum(part.nbytes for part in parts if part is not None)

    def times(self, x: Tensor) -> Tensor:
        """x W' + bias for x (..., columns) on its device; in another dtype than W's it is multiplied dense."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if x.dtype != self.dtype:
            return F.linear(x, self.dense(dtype=x.dtype), bias)
        return F.linear(x.reshape(-1, self.columns), self.weight, bias).view(*x.shape[:-1], self.rows)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """W as it was, (rows, columns), in its own dtype or in `dtype`."""
        return self.weight.to_dense().to(dtype or self.dtype)
