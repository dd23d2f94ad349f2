"""Small numbers out of larger ones: integers out of int32 words, halves of bytes."""

from __future__ import annotations

import torch
from torch import Tensor

# The sixteen numbers of FP4 (E2M1: a sign, two bits of exponent, one of mantissa), by their codes.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def words(count: int, bits: int) -> int:
    """The int32 words that so many numbers of so many bits take.

    >>> words(11, 3)
    2
    """
    return -(-count * bits // 32)


def unpack(packed: Tensor, bits: int, count: int, dim: int = -1) -> Tensor:
    """Unsigned numbers that lie without gaps in int32 words, from the lowest bit upwards; some cross into the next.

    Args:
        packed: int32; along `dim` at least `words(count, bits)`.
        bits: of a number, 1 to 8.
        count: of numbers along `dim`.

    Returns:
        int32 of the same shape, but `count` along `dim`.
    """
    begin = torch.arange(count) * bits
    word, shift = begin // 32, (begin % 32).to(torch.int32)
    lanes = packed.movedim(dim, -1)
    here = (32 - shift).clamp(max=bits)  # bits of a number that are in its first word
    found = (lanes[..., word] >> shift) & ((1 << here) - 1)
    if bool((here < bits).any()):
        following = lanes[..., (word + 1).clamp(max=lanes.shape[-1] - 1)]
        found |= torch.where(here < bits, (following << here) & ((1 << bits) - 1), 0)
    return found.movedim(-1, dim)


def nibbles(packed: Tensor, low_first: bool = True) -> Tensor:
    """Both halves of each byte, side by side: uint8 (..., n) -> int64 (..., 2n)."""
    halves = ((packed & 15).long(), (packed >> 4).long())
    return torch.stack(halves if low_first else halves[::-1], dim=-1).flatten(-2)


def power_of_two(exponent: Tensor) -> Tensor:
    """E8M0, an exponent of two in a byte with 127 for one: uint8 -> fp32."""
    return torch.exp2(exponent.float() - 127)
