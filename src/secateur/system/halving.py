"""Work on many items at once, in parts that the memory of a device suffices for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from secateur.errors import ResourceError
from secateur.system import accelerator

Item = TypeVar("Item")
T = TypeVar("T")


def in_parts(run: Callable[[Sequence[Item]], T], items: Sequence[Item], device: torch.device) -> Iterator[T]:
    """Yields `run(part)` for parts of the items, in order: all at once, or halves as long as that is too much.

    Says when a part is halved. What `run` gives for an item must not depend on how the items are divided.

    Raises:
        ResourceError: a single item is too much.
    """
    first, size = 0, len(items)
    while first < len(items):
        part = items[first : first + size]
        found = _tried(run, part)
        if found:
            yield found[0]
            first += len(part)
            continue
        accelerator.empty_cache(device)
        if len(part) == 1:
            raise ResourceError(
                f"not enough memory on {device} for one sequence; use a shorter --length or --device cpu"
            )
        size = -(-len(part) // 2)
        warnings.warn(f"not enough memory on {device}: going on with {size} sequences at a time", stacklevel=3)


def _tried(run: Callable[[Sequence[Item]], T], part: Sequence[Item]) -> tuple[T] | None:
    """What it gives, or None for a lack of memory: the frames that hold what was allocated are gone by then."""
    try:
        return (run(part),)
    except torch.OutOfMemoryError:
        return None
