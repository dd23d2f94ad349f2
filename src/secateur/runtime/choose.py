"""Which form of a matrix is faster here: measured once for each shape, then remembered for the process.

A token's weights come from memory, not from a cache, as all others have gone through it since. So caches are
flushed before each timing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.runtime.ir import MAX_BATCH
from secateur.runtime.matrix import Matrix

RUNS = 7
FLUSH_BYTES = 96 << 20
WORTH = 1.03  # a packed form that is slower by less than this is taken: it saves memory
SIZES = (8, 4, 2)  # rows of x at which it's looked whether kernels still beat unpacking


@dataclass(frozen=True)
class Choice:
    """How matrices of one shape are computed.

    Args:
        packed: from the packed form; otherwise dense.
        limit: rows of x up to which a kernel multiplies; with more, tiles are unpacked.
        seconds_packed, seconds_dense: of one row of x; None where nothing was measured.
    """

    packed: bool
    limit: int
    seconds_packed: float | None = None
    seconds_dense: float | None = None


_known: dict[tuple[object, ...], Choice] = {}


def choose(matrix: Matrix, dtype: torch.dtype) -> Choice:
    """Measures a matrix against its dense form on activations of a dtype, or remembers one like it."""
    density = round(20 * matrix.kept / max(1, matrix.rows * matrix.columns))
    key = (matrix.rows, matrix.columns, matrix.kind, matrix.group, density, dtype, torch.get_num_threads())
    if key not in _known:
        _known[key] = measure(matrix, dtype)
    return _known[key]


def forget() -> None:
    """Measures anew from now on."""
    _known.clear()


def measure(matrix: Matrix, dtype: torch.dtype) -> Choice:
    """Times one row of x both ways, then finds up to how many rows a kernel beats unpacking."""
    if matrix.variant is None or not matrix.rows or not matrix.columns:
        return Choice(False, 0)
    W = matrix.dense(dtype=dtype).contiguous()
    bias = None if matrix.bias is None else matrix.bias.to(dtype)
    x = torch.randn(MAX_BATCH, matrix.columns).to(dtype)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8)
    packed, dense = _race(flush, lambda: matrix.times(x[:1]), lambda: F.linear(x[:1], W, bias))
    if packed > WORTH * dense:
        return Choice(False, 0, packed, dense)
    for rows in SIZES:
        by_kernel, by_tiles = _race(flush, lambda n=rows: matrix.times(x[:n]), lambda n=rows: matrix.by_tiles(x[:n]))  # type: ignore[misc]
        if by_kernel <= by_tiles:
            return Choice(True, rows, packed, dense)
    return Choice(True, 1, packed, dense)


def _race(flush: Tensor, *works: Callable[[], Tensor]) -> list[float]:
    """The best seconds of each, taken in turns, with cold caches: what else the machine does only adds time."""
    times: list[list[float]] = [[] for _ in works]
    for run in range(RUNS + 1):
        for work, own in zip(works, times, strict=True):
            flush.fill_(run)
            begin = time.perf_counter()
            work()
            if run:  # the first compiles
                own.append(time.perf_counter() - begin)
    return [min(own) for own in times]
