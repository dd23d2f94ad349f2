"""Sparse matrices as a bitmap and the values that it keeps: docs/format.md, as functions of tensors.

    packed = pack(W)                 # lossless: what isn't kept is exactly +0
    packed = quantise(packed, 128)   # int8 values, one scale per row and 128 columns
    W = unpack(packed)

An entry is kept if any bit of it is set, so -0 and NaN come back as they were. `kept(W, exact=False)` leaves -0 out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from secateur.errors import InputError

VERSION = 1
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
WORD = 64  # columns that a kernel handles at a time; a group of scales is a multiple of it
MOST_GROUP = 1 << 20
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Packed:
    """A matrix (rows, columns) without its zeros. Kernels trust it blindly, so parts that don't fit make none.

    Args:
        values: (kept,), row by row; bf16, fp16, fp32 or int8.
        bitmap: (rows, ceil(columns / 8)) uint8; bit `j % 8` of byte `j // 8` is set where column j is kept.
        columns: of the matrix.
        dtype: of the matrix; differs from that of `values` if they are int8.
        scales: (rows, groups) float32 for int8 values, else None.
        group: columns that share a scale.
    """

    values: Tensor
    bitmap: Tensor
    columns: int
    dtype: torch.dtype
    scales: Tensor | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError for parts that don't fit together: of a damaged file."""
        fault = _misshaped(self) or _miscounted(self)
        if fault:
            raise InputError(f"{fault}; the file is damaged, make it again")

    @property
    def rows(self) -> int:
        return self.bitmap.shape[0]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.bitmap.nbytes + (0 if self.scales is None else self.scales.nbytes)


def kept(W: Tensor, exact: bool = True) -> Tensor:
    """Which entries are stored: every one with a bit set, or, if not `exact`, with one set beside the sign.

    (rows, columns) bool.
    """
    bits = W.view(_BITS[W.element_size()])
    return bits != 0 if exact else (bits != 0) & (bits != torch.iinfo(bits.dtype).min)


def packed_bytes(rows: int, columns: int, count: int, width: int) -> int:
    """Bytes of a packed matrix with `count` entries of `width` bytes."""
    return count * width + rows * -(-columns // 8)


def pack(W: Tensor, exact: bool = True) -> Packed:
    """Packs a matrix (rows, columns) of bf16, fp16 or fp32 without loss; if not `exact`, -0.0 comes back as 0.0."""
    mask = kept(W, exact)
    bits = np.packbits(mask.numpy(), axis=1, bitorder="little")
    return Packed(W[mask], torch.from_numpy(bits), W.shape[1], W.dtype)


def mask_of(packed: Packed) -> Tensor:
    """(rows, columns) bool, True where an entry is kept."""
    bits = np.unpackbits(packed.bitmap.numpy(), axis=1, count=packed.columns, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_))


def unpack(packed: Packed) -> Tensor:
    """The matrix (rows, columns): bit for bit what was packed, or what int8 values stand for."""
    mask = mask_of(packed)
    values = packed.values if packed.scales is None else _scaled(packed, mask).to(packed.dtype)
    bits = _BITS[values.element_size()]
    out = torch.zeros(mask.shape, dtype=bits)
    out[mask] = values.view(bits)
    return out.view(packed.dtype)


def _scaled(packed: Packed, mask: Tensor) -> Tensor:
    """What int8 values stand for, (kept,) float32."""
    assert packed.scales is not None
    return packed.values.float() * packed.scales.flatten()[_places(mask, packed.group, packed.columns)]


def _places(mask: Tensor, group: int | None, columns: int) -> Tensor:
    """For every kept entry, which of the flattened scales is its own."""
    width = group or max(columns, 1)
    groups = -(-columns // width)
    row, column = mask.nonzero(as_tuple=True)
    return row * groups + column // width


def quantise(packed: Packed, group: int | None = None) -> Packed:
    """Rounds the values to int8, symmetric, with one float32 scale per row, or per row and `group` columns.

    Kept entries that round to zero stay kept. A group's largest entry is at 127 of its scale.

    Raises:
        InputError: `group` isn't a multiple of 64, or there is something that isn't finite.
    """
    check_group(group)
    if not bool(torch.isfinite(packed.values.float()).all()):
        raise InputError("a weight isn't finite, so it has no int8 form; keep the values as they are")
    mask = mask_of(packed)
    width = group or max(packed.columns, 1)
    groups = -(-packed.columns // width)
    place = _places(mask, group, packed.columns)
    values = packed.values.float()
    largest = torch.zeros(packed.rows * groups).scatter_reduce_(0, place, values.abs(), "amax")
    scales = scales_of(largest)
    rounded = round_to_int8(values, scales[place])
    return replace(packed, values=rounded, scales=scales.view(packed.rows, groups), group=group)


def scales_of(largest: Tensor) -> Tensor:
    """The scale of each group, from the size of its largest entry, float32: that entry is at 127 of it.

    A group of zeros or of the smallest denormals has no scale: its entries are zero.
    """
    none = torch.ones((), device=largest.device)
    return torch.where(largest >= 127 * torch.finfo(torch.float32).tiny, largest / 127, none)


def round_to_int8(values: Tensor, scales: Tensor) -> Tensor:
    """float32 values as int8 multiples of their scales, to the nearest."""
    return (values / scales).round().clamp(-127, 127).to(torch.int8)


def group_fits(group: int | None) -> bool:
    """Whether so many columns can share a scale; None: the whole row."""
    return group is None or (type(group) is int and WORD <= group <= MOST_GROUP and not group % WORD)


def check_group(group: int | None) -> None:
    if not group_fits(group):
        raise InputError(
            f"--group {group}: columns that share a scale are a multiple of {WORD}, such as 128, "
            f"and no more than {MOST_GROUP}"
        )


def _misshaped(packed: Packed) -> str | None:
    """What is wrong with the shapes and dtypes of the parts."""
    bitmap, values, scales = packed.bitmap, packed.values, packed.scales
    width = -(-packed.columns // 8)
    if bitmap.dtype != torch.uint8 or bitmap.dim() != 2 or bitmap.shape[1] != width:
        return f"its bitmap isn't uint8 with {width} bytes a row"
    if packed.dtype not in FLOATS or values.dtype != (packed.dtype if scales is None else torch.int8):
        return f"its values are {values.dtype}"
    if values.dim() != 1:
        return "its values aren't one after the other"
    if not group_fits(packed.group) or (scales is None and packed.group is not None):
        return f"its group of {packed.group} columns isn't a multiple of {WORD} with int8 values"
    groups = -(-packed.columns // (packed.group or max(packed.columns, 1)))
    if scales is not None and (scales.dtype != torch.float32 or scales.shape != (packed.rows, groups)):
        return f"its scales aren't float32, {groups} a row"
    return None


def _miscounted(packed: Packed) -> str | None:
    """What is wrong with the bits: they say where the values belong."""
    spare = -packed.columns % 8
    if spare and packed.rows and bool((packed.bitmap[:, -1] >> (8 - spare)).any()):
        return "its bitmap keeps columns that aren't there"
    kept = int(counts(packed.bitmap).sum())
    if kept != packed.values.shape[0]:
        return f"its bitmap keeps {kept} entries, but it has {packed.values.shape[0]} values"
    return None


def counts(bitmap: Tensor) -> Tensor:
    """Kept entries of each row, (rows,) int64."""
    return torch.from_numpy(np.bitwise_count(bitmap.numpy()).sum(axis=1, dtype=np.int64))
