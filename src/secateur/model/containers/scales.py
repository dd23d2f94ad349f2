"""Scales that neighbours share: one for a tensor, for a row, for a group of columns or for a block of both.

Along each axis `entries` scales cover `width` weights, so a number of neighbours has one in common; the last may have
fewer. That number is called the grain of the axis here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from secateur.model.containers.packing import power_of_two
from secateur.model.containers.tensors import FLOATS, Tensors

SCALES = (*FLOATS, "F8_E8M0", "U8")


def grain(entries: int, width: int, named: Iterable[int] = ()) -> int | None:
    """How many neighbours share a scale; None: these entries don't cover that width.

    >>> grain(1, 300), grain(300, 300), grain(3, 300, [128]), grain(4, 300, [128])
    (300, 1, 128, None)
    """
    if entries in (1, width):
        return width if entries == 1 else 1
    return next((size for size in named if size > 0 and -(-width // size) == entries), None)


def grains(
    tensors: Tensors, scale: str, shape: Sequence[int], named: Sequence[Iterable[int]], dtypes: Sequence[str] = SCALES
) -> tuple[int, ...]:
    """The grain of each axis of a weight, by the shape of its scales.

    Args:
        scale: name of the scales: of no axes or one entry, of the axes of the weight without the last, or of all.
        shape: of the weight.
        named: for each of its last axes the grains that may be meant.

    Raises:
        InputError: the scales don't cover the weight.
    """
    found = _full(tensors.shape(scale, dtypes), shape)
    candidates = [*[()] * (len(shape) - len(named)), *named]
    if len(found) == len(shape):
        sizes = [grain(n, width, some) for n, width, some in zip(found, shape, candidates, strict=True)]
        if all(size is not None for size in sizes):
            return tuple(size for size in sizes if size is not None)
    raise tensors.wrong(scale, f"has the shape {list(found)}, which doesn't cover a weight of {list(shape)}")


def spread(scale: Tensor, shape: Sequence[int], grains: Sequence[int]) -> Tensor:
    """Scales as fp32, repeated so that each weight has its own (or broadcasts).

    Args:
        scale: floats, or uint8 for powers of two.
        shape, grains: of the weight.
    """
    full = (power_of_two(scale) if scale.dtype == torch.uint8 else scale.float()).reshape(_full(scale.shape, shape))
    for axis, (width, size) in enumerate(zip(shape, grains, strict=True)):
        if full.shape[axis] not in (1, width):
            full = full.repeat_interleave(size, axis).narrow(axis, 0, width)
    return full


def _full(found: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of scales with as many axes as the weight."""
    if not found or tuple(found) == (1,):
        return (1,) * len(shape)
    if tuple(found) == tuple(shape[:-1]):
        return (*found, 1)
    return tuple(found)
