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

RUNS, FEW_RUNS = 7, 2
FLUSH_BYTES = 96 << 20
WORTH = 1.03  # a packed form that is slower by less than this is taken: it saves memory
SOME, MANY = 32, 128  # rows of x that tell how the time of unpacking and multiplying grows
MOST = 4096


@dataclass(frozen=True)
class Choice:
    """How matrices of one shape are computed.

    Args:
        packed: from the packed form; otherwise dense.
        limit: rows of x up to which a kernel multiplies; with more, tiles are unpacked.
        wide: tiles are multiplied in float32.
        seconds_packed, seconds_dense: of one row of x; None where nothing was measured.
    """

    packed: bool
    limit: int
    wide: bool = False
    seconds_packed: float | None = None
    seconds_dense: float | None = None


_known: dict[tuple[object, ...], Choice] = {}


def choose(matrix: Matrix, dtype: torch.dtype, packed: bool = False) -> Choice:
    """Measures a matrix against its dense form on activations of a dtype, or remembers one like it.

    Args:
        packed: it stays packed anyway; only how it multiplies many rows is measured.
    """
    density = round(20 * matrix.kept / max(1, matrix.rows * matrix.columns))
    threads = torch.get_num_threads()
    key = (matrix.rows, matrix.columns, matrix.kind, matrix.group, density, dtype, threads, packed)
    if key not in _known:
        _known[key] = measure(matrix, dtype, packed)
    return _known[key]


def forget() -> None:
    """Measures anew from now on."""
    _known.clear()


def measure(matrix: Matrix, dtype: torch.dtype, packed: bool = False) -> Choice:
    """Times one row of x both ways, then finds up to how many rows a kernel beats unpacking."""
    if matrix.variant is None or not matrix.rows or not matrix.columns:
        return Choice(packed, 0)
    x = torch.randn(MANY, matrix.columns).to(dtype)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8)
    if packed:
        return Choice(True, *_for_many(matrix, x, flush))
    W = matrix.dense(dtype=dtype).contiguous()
    bias = None if matrix.bias is None else matrix.bias.to(dtype)
    small, large = _race(flush, RUNS, lambda: matrix.times(x[:1]), lambda: F.linear(x[:1], W, bias))
    if small > WORTH * large:
        return Choice(False, 0, False, small, large)
    return Choice(True, *_for_many(matrix, x, flush), small, large)


def _for_many(matrix: Matrix, x: Tensor, flush: Tensor) -> tuple[int, bool]:
    """Up to how many rows the kernel is faster than tiles, and whether tiles are in float32.

    The kernel's time grows with the rows; that of tiles too, but it begins with the time to unpack.
    """
    wide = x.dtype == torch.float32
    if not wide:
        whole, narrow = _race(flush, FEW_RUNS, *(lambda w=w: matrix.by_tiles(x[:SOME], w) for w in (True, False)))
        wide = whole < narrow
    works = (
        lambda: matrix.times(x[:MAX_BATCH]),
        lambda: matrix.by_tiles(x[:SOME], wide),
        lambda: matrix.by_tiles(x, wide),
    )
    kernel, some, many = _race(flush, FEW_RUNS, *works)
    a_row = max(0.0, (many - some) / (MANY - SOME))
    begin, faster = some - SOME * a_row, kernel / MAX_BATCH - a_row
    limit = MOST if faster <= 0 else min(MOST, int(max(0.0, begin) / faster) // MAX_BATCH * MAX_BATCH)
    return max(1, limit), wide


def _race(flush: Tensor, runs: int, *works: Callable[[], Tensor]) -> list[float]:
    """The best seconds of each, taken in turns, with cold caches: what else the machine does only adds time."""
    times: list[list[float]] = [[] for _ in works]
    for run in range(runs + 1):
        for work, own in zip(works, times, strict=True):
            flush.fill_(run)
            begin = time.perf_counter()
            work()
            if run:  # the first compiles
                own.append(time.perf_counter() - begin)
    return [min(own) for own in times]
