"""Which form of a matrix is faster here: measured once for each shape, then remembered, by later processes too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.runtime.format import Packed
from secateur.runtime.kernels.ir import MAX_BATCH
from secateur.runtime.kernels.jit import variants
from secateur.runtime.layouts import another_form
from secateur.runtime.matrix import Matrix
from secateur.runtime.measured_before import measured_before
from secateur.runtime.race import race

RUNS, FEW_RUNS = 7, 2
WORTH = 1.03  # a packed form that is slower by less than this is taken: it saves memory
SLOTS_WORTH = 1.1  # slots that are faster by less than this aren't: they take more memory
SOME, MANY = 32, 128  # rows of x that tell how the time of unpacking and multiplying grows
MOST = 4096


@dataclass(frozen=True)
class Choice:
    """How matrices of one shape are computed.

    Args:
        packed: from the packed form; otherwise dense.
        limit: rows of x up to which a kernel multiplies; with more, tiles are unpacked.
        wide: tiles are multiplied in float32.
        variant: of the kernels; None: the usual one.
        seconds_packed, seconds_dense: of one row of x; None where nothing was measured.
    """

    packed: bool
    limit: int
    wide: bool = False
    variant: str | None = None
    seconds_packed: float | None = None
    seconds_dense: float | None = None


_known: dict[tuple[object, ...], Choice] = {}


def choose(packed: Packed, dtype: torch.dtype, anyway: bool = False) -> Choice:
    """Measures a matrix against its dense form on activations of a dtype, or remembers one like it.

    Args:
        anyway: it stays packed; only how is measured.
    """
    other = another_form(packed) if dtype == torch.bfloat16 else None
    density = round(20 * packed.values.shape[0] / max(1, packed.rows * packed.columns))
    shape = (packed.rows, packed.columns, packed.values.dtype, packed.group, density)
    key = (*shape, dtype, torch.get_num_threads(), other, anyway)
    if key not in _known:
        usable = (None, *variants(), other)
        _known[key] = measured_before(
            Choice,
            key,
            lambda: measure(packed, dtype, other, anyway),
            lambda kept: kept.variant in usable and 0 <= kept.limit <= MOST and (kept.packed or not anyway),
        )
    return _known[key]


def forget() -> None:
    """Forgets what this process knows; what the user's cache has stays there."""
    _known.clear()


def measure(packed: Packed, dtype: torch.dtype, other: str | None = None, anyway: bool = False) -> Choice:
    """Times one row of x in each form, then finds up to how many rows a kernel beats unpacking.

    Args:
        other: a variant that is tried too.
    """
    forms = [Matrix(packed)]
    if forms[0].variant is None or not packed.rows or not packed.columns:
        return Choice(anyway, 0)
    if other:
        forms.append(Matrix(packed, variant=other))
    x = torch.randn(MANY, packed.columns).to(dtype)
    W = None if anyway else forms[0].dense(dtype=dtype).contiguous()
    if W is None and not other:
        return Choice(True, *_for_many(forms[0], x))
    works = [lambda m=m: m.times(x[:1]) for m in forms]
    times = race(RUNS, *works, *([] if W is None else [lambda: F.linear(x[:1], W)]))
    large = None if W is None else times[-1]
    worth = SLOTS_WORTH if other == "slots" else 1.0
    best = int(bool(other) and (worth * times[1] < times[0] or (large is not None and times[0] > WORTH * large)))
    small = times[best]
    if large is not None and small > WORTH * large:
        return Choice(False, 0, False, None, small, large)
    variant = forms[best].variant if best else None
    return Choice(True, *_for_many(forms[best], x), variant, small, large)


def _for_many(matrix: Matrix, x: Tensor) -> tuple[int, bool]:
    """Up to how many rows the kernel is faster than tiles, and whether tiles are in float32.

    The kernel's time grows with the rows; that of tiles too, but it begins with the time to unpack.
    """
    wide = x.dtype == torch.float32
    if not wide:
        whole, narrow = race(FEW_RUNS, *(lambda w=w: matrix.by_tiles(x[:SOME], w) for w in (True, False)))
        wide = whole < narrow
    works = (
        lambda: matrix.times(x[:MAX_BATCH]),
        lambda: matrix.by_tiles(x[:SOME], wide),
        lambda: matrix.by_tiles(x, wide),
    )
    kernel, some, many = race(FEW_RUNS, *works)
    a_row = max(0.0, (many - some) / (MANY - SOME))
    begin, faster = some - SOME * a_row, kernel / MAX_BATCH - a_row
    limit = MOST if faster <= 0 else min(MOST, int(max(0.0, begin) / faster) // MAX_BATCH * MAX_BATCH)
    return max(1, limit), wide
