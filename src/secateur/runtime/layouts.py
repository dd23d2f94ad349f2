"""How a packed matrix lies in memory for the kernels. On disk rows stand one after the other; here they are woven.

A layout has what kernels ask for: `names` of the fields of their structure, `fields(first)` for rows from `first` on,
a multiple of `together`, the rows that are woven; `batch`, the most rows of x that they take at once, and their
`dtype`, None for any; and the `tensors` that it holds, of which `values` are the kept ones.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.runtime.format import WORD, Packed, counts
from secateur.runtime.kernels import bytes, ir, slots
from secateur.runtime.kernels.jit import cutter, interleaver, multiplies_bytes, shares_threads, variants
from secateur.runtime.pages import room

PADDING = ir.LINE  # bytes before and after the values, as vectors are loaded whole
WOVEN_ROWS = 1024  # that a thread weaves at a time
FULLEST = 0.42  # share of kept entries up to which slots are tried: 60 % zeros, however they are rounded


class Layout(Protocol):
    names: tuple[str, ...]
    together: int
    batch: int
    dtype: torch.dtype | None
    values: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]: ...

    def fields(self, first: int) -> dict[str, int]: ...


def lay_out(packed: Packed, variant: str | None) -> Layout:
    """As kernels of a variant want it; None: as it is stored, since there are no kernels."""
    if variant is None:
        return AsStored(packed)
    if variant == "slots":
        return Slots(packed)
    return Pairs(packed, torch.bfloat16 if variant == bytes.NAME else None)


class AsStored:
    """Nothing woven."""

    names: tuple[str, ...] = ()
    together, batch = ir.PAIR, ir.MAX_BATCH
    dtype: torch.dtype | None = None

    def __init__(self, packed: Packed) -> None:
        self.values, self.bitmap = packed.values, packed.bitmap

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.values, self.bitmap

    def fields(self, first: int) -> dict[str, int]:
        return {}


class Pairs:
    """Rows two by two, values and bitmap: kernels/ir.py."""

    names: tuple[str, ...] = ir.LAYER
    together, batch = ir.PAIR, ir.MAX_BATCH

    def __init__(self, packed: Packed, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype
        self.words = words = -(-packed.columns // WORD)
        rows = -(-packed.rows // ir.PAIR) * ir.PAIR
        stored = F.pad(packed.bitmap, (0, 8 * words - packed.bitmap.shape[1], 0, rows - packed.rows))
        self.bitmap = _roomy(stored.numel(), torch.uint8)
        self.values = _roomy(packed.values.shape[0], packed.values.dtype)
        starts = _starts(stored)
        source, width, weave = packed.values.contiguous(), self.values.element_size(), interleaver()

        def part(first: int) -> None:
            begin, line = int(starts[first]), 8 * words * first
            given = (source.data_ptr(), stored.data_ptr() + line, starts.data_ptr() + 8 * first)
            made = (self.values.data_ptr() + width * begin, self.bitmap.data_ptr() + line)
            weave(*given, *made, min(WOVEN_ROWS, rows - first), words, width)

        if rows and words:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                list(pool.map(part, range(0, rows, WOVEN_ROWS)))
        self.offsets = starts[:: ir.PAIR].contiguous()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.values, self.bitmap, self.offsets

    def fields(self, first: int) -> dict[str, int]:
        return {
            "values": self.values.data_ptr(),
            "bitmap": self.bitmap.data_ptr() + 8 * self.words * first,
            "offsets": self.offsets.data_ptr() + 8 * (first // ir.PAIR),
            "words": self.words,
        }


class Slots:
    """Rows four by four, in steps of 15 columns: kernels/slots.py. For what `slots_fit` says."""

    names: tuple[str, ...] = slots.LAYER
    together, batch = slots.ROWS, slots.MAX_BATCH
    dtype: torch.dtype | None = torch.bfloat16

    def __init__(self, packed: Packed) -> None:
        assert packed.values.dtype == torch.bfloat16
        assert not packed.rows % slots.ROWS
        assert not packed.columns % WORD
        words, groups = packed.columns // WORD, packed.rows // slots.ROWS
        stored = F.pad(packed.bitmap.flatten(), (0, 4))
        starts = _starts(packed.bitmap)
        self.values = _roomy(packed.values.shape[0], packed.values.dtype)
        steps = torch.zeros(groups + 1, dtype=torch.int64)
        most = packed.columns // slots.SLOTS  # steps of a group
        source, cut = packed.values.contiguous(), cutter()

        def part(first: int) -> tuple[Tensor, Tensor]:
            count, row = min(WOVEN_ROWS // slots.ROWS, groups - first), slots.ROWS * first
            lines = torch.empty(count * most, slots.STEP_BYTES, dtype=torch.uint8)
            heads = torch.empty(count * most, dtype=torch.int32)
            own = steps[first + 1 : first + 1 + count]
            given = (source.data_ptr(), stored.data_ptr() + 8 * words * row, starts.data_ptr() + 8 * row)
            made = (lines.data_ptr(), heads.data_ptr(), own.data_ptr())
            cut(*given, self.values.data_ptr() + 2 * int(starts[row]), *made, count, words)
            made_steps = int(own.sum())
            return lines[:made_steps].clone(), heads[:made_steps].clone()

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            parts = list(pool.map(part, range(0, groups, WOVEN_ROWS // slots.ROWS)))
        total = int(steps.sum())
        self.slots = _roomy(total * slots.STEP_BYTES, torch.uint8)
        self.heads = _roomy(total, torch.int32)
        torch.cat([lines.flatten() for lines, _ in parts], out=self.slots)
        torch.cat([heads for _, heads in parts], out=self.heads)
        self.offsets = torch.stack([starts[:: slots.ROWS], steps.cumsum(0)], 1).contiguous()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.values, self.slots, self.heads, self.offsets

    def fields(self, first: int) -> dict[str, int]:
        return {
            "values": self.values.data_ptr(),
            "slots": self.slots.data_ptr(),
            "heads": self.heads.data_ptr(),
            "offsets": self.offsets.data_ptr() + 16 * (first // slots.ROWS),
        }


def slots_fit(packed: Packed) -> bool:
    """Whether this processor has kernels for slots, and whether they can take the matrix and may be faster."""
    entries = packed.rows * packed.columns
    if packed.values.dtype != torch.bfloat16 or packed.rows % 8 or packed.columns % WORD or not entries:
        return False
    if "avx2" not in variants() or not shares_threads() or packed.values.shape[0] > FULLEST * entries:
        return False
    return not packed.values.numel() or all(bool(end.isfinite()) for end in torch.aminmax(packed.values))


def bytes_fit(packed: Packed) -> bool:
    """Whether this processor multiplies bytes, and the matrix is one that its kernels take."""
    whole = packed.rows and packed.columns and not packed.rows % 8 and not packed.columns % WORD
    return packed.values.dtype == torch.int8 and bool(whole) and multiplies_bytes() and shares_threads()


def another_form(packed: Packed) -> str | None:
    """The variant, for bf16 activations, that a matrix may be faster in than in the usual one."""
    if slots_fit(packed):
        return "slots"
    return bytes.NAME if bytes_fit(packed) else None


def _starts(bitmap: Tensor) -> Tensor:
    """Where the values of each row begin, and where those of the last end: (rows + 1,) int64."""
    starts = torch.zeros(bitmap.shape[0] + 1, dtype=torch.int64)
    torch.cumsum(counts(bitmap), 0, out=starts[1:])
    return starts


def _roomy(count: int, dtype: torch.dtype) -> Tensor:
    """Zeros, with some bytes to spare on both sides."""
    size = max(1, count) * dtype.itemsize + 2 * PADDING  # one at least: torch has no address for nothing
    return room(size)[PADDING : size - PADDING].view(dtype)
