"""Triton kernels for matrices as docs/format.md stores them: nothing is woven, rows stand one after the other.

A program takes some rows, and a piece of each at a time: a lane holds one byte of the bitmap, so 8 columns. A scan
over the numbers of bits set says where the lane's values begin; from there it steps from bit to bit. So a product
reads each kept value once, and nothing of what isn't kept.

Imported only where Triton is there. With TRITON_INTERPRET=1 in the environment they run on a CPU, slowly.
"""

# mypy: ignore-errors
# Triton reads the functions itself, and takes no annotations but its own.

from __future__ import annotations

import triton
import triton.language as tl

BYTE = tl.constexpr(8)


@triton.jit
def _bits_set(byte):
    """How many bits of a byte are set."""
    pairs = byte - ((byte >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return (fours + (fours >> 4)) & 0x0F


@triton.jit
def _lanes(bitmap, row, line, place, rows, width, base):
    """(bytes of the bitmap, where the values of each begin, where those of the rows go on), for a piece of some rows.

    Args:
        row, line: (R,) rows, and where their bitmaps begin.
        place: (B,) bytes of a row's bitmap.
        base: (R,) int32, where the values of the piece begin, counted from those of the row: in 64 bits these sums
            would take two instructions each.
    """
    there = (row < rows)[:, None] & (place < width)[None, :]
    byte = tl.load(bitmap + line[:, None] + place[None, :], mask=there, other=0).to(tl.int32)
    count = _bits_set(byte)
    begin = base[:, None] + (tl.cumsum(count, 1) - count)
    return byte, begin, base + tl.sum(count, 1)


@triton.jit
def gemv(
    values,
    bitmap,
    starts,
    bias,
    x,
    y,
    rows,
    columns,
    width,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
    BIAS: tl.constexpr,
):
    """y (rows,) = W x + bias, for one x (columns,); sums in fp32.

    Args:
        starts: (rows,) int64, where a row's values begin.
        width: bytes of a row's bitmap.
        ROWS, BYTES: of the bitmap that a program takes at a time, powers of two.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    line = row.to(tl.int64) * width
    own = values + tl.load(starts + row, mask=row < rows, other=0)[:, None]
    base = tl.zeros((ROWS,), tl.int32)
    total = tl.zeros((ROWS, BYTES), tl.float32)
    for first in range(0, width, BYTES):
        place = first + tl.arange(0, BYTES)
        byte, at, base = _lanes(bitmap, row, line, place, rows, width, base)
        for bit in tl.static_range(BYTE):
            column = BYTE * place + bit
            kept = (byte >> bit) & 1
            value = tl.load(own + at, mask=kept > 0, other=0).to(tl.float32)
            entry = tl.load(x + column, mask=column < columns, other=0).to(tl.float32)
            total += value * entry[None, :]
            at += kept
    found = tl.sum(total, 1)
    if BIAS:
        found += tl.load(bias + row, mask=row < rows, other=0)
    tl.store(y + row, found.to(y.dtype.element_ty), mask=row < rows)


@triton.jit
def gemm(
    values,
    bitmap,
    starts,
    bias,
    x,
    y,
    rows,
    columns,
    width,
    count,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
    COUNT: tl.constexpr,
    BIAS: tl.constexpr,
):
    """y (count, rows) = x W' + bias, for x (count, columns), `count` at most COUNT; sums in fp32.

    A tile is unpacked as 8 smaller ones, of every 8th column each. They are multiplied as tf32, which holds bf16 and
    fp16 without loss.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    line = row.to(tl.int64) * width
    own = values + tl.load(starts + row, mask=row < rows, other=0)[:, None]
    base = tl.zeros((ROWS,), tl.int32)
    which = tl.arange(0, COUNT)
    total = tl.zeros((ROWS, COUNT), tl.float32)
    for first in range(0, width, BYTES):
        place = first + tl.arange(0, BYTES)
        byte, at, base = _lanes(bitmap, row, line, place, rows, width, base)
        for bit in tl.static_range(BYTE):
            column = BYTE * place + bit
            kept = (byte >> bit) & 1
            value = tl.load(own + at, mask=kept > 0, other=0).to(tl.float32)
            inside = (column < columns)[:, None] & (which < count)[None, :]
            entries = tl.load(x + which[None, :] * columns + column[:, None], mask=inside, other=0).to(tl.float32)
            total = tl.dot(value, entries, total)
            at += kept
    if BIAS:
        total += tl.load(bias + row, mask=row < rows, other=0)[:, None]
    there = (row < rows)[:, None] & (which < count)[None, :]
    tl.store(y + which[None, :] * rows + row[:, None], total.to(y.dtype.element_ty), mask=there)


@triton.jit
def unpack(
    values,
    bitmap,
    starts,
    out,
    first,
    rows,
    columns,
    width,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """Rows from `first` to `rows` of W, dense, into out (rows - first, columns)."""
    inside = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = first + inside
    line = row.to(tl.int64) * width
    own = values + tl.load(starts + row, mask=row < rows, other=0)[:, None]
    base = tl.zeros((ROWS,), tl.int32)
    for start in range(0, width, BYTES):
        place = start + tl.arange(0, BYTES)
        byte, at, base = _lanes(bitmap, row, line, place, rows, width, base)
        for bit in tl.static_range(BYTE):
            column = BYTE * place + bit
            kept = (byte >> bit) & 1
            value = tl.load(own + at, mask=kept > 0, other=0)
            there = (row < rows)[:, None] & (column < columns)[None, :]
            to = out + inside.to(tl.int64)[:, None] * columns + column[None, :]
            tl.store(to, value.to(out.dtype.element_ty), mask=there)
            at += kept
