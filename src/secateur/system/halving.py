"""Work on many items at once, in parts that the memory of a device suffices for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from secateur.errors import ResourceError
from secateur.system import accelerator

Item = TypeVar("Item")
T = TypeVar("T")
LISTENERS: list[list[str]] = []  # each gets every line that is said below, once


@dataclass
class AtOnce:
    """The most items at once for which memory has sufficed so far; None: it always has."""

    most: int | None = None


def in_parts(
    run: Callable[[Sequence[Item]], T], items: Sequence[Item], device: torch.device, room: AtOnce | None = None
) -> Iterator[T]:
    """Yields `run(part)` for parts of the items, in order: all at once, or halves as long as that is too much.

    Says when a part is halved. What `run` gives for an item must not depend on how the items are divided.

    Args:
        room: what was found out before, which is where it begins; None: nothing was.

    Raises:
        ResourceError: a single item is too much.
    """
    room, first = room or AtOnce(), 0
    while first < len(items):
        part = items[first : first + (room.most or len(items))]
        found = tried(lambda part=part: run(part))  # type: ignore[misc]
        if found:
            yield found[0]
            first += len(part)
        else:
            halve(room, len(part), device)


def piecewise(
    look: Callable[[slice, dict[str, T]], None],
    sums: Mapping[str, T],
    count: int,
    device: torch.device,
    room: AtOnce,
) -> None:
    """Adds `count` items to every one of some sums: all at once, or some after the other where that is too much.

    Args:
        look: adds some of the items to sums, and takes away those that have them, one by one: a lack of memory in
            between leaves those that haven't.
        room: as in `in_parts`.
    """
    step = room.most or count
    left = [(slice(first, min(first + step, count)), dict(sums)) for first in range(0, count, step)]
    while left:
        rows, waiting = left.pop(0)
        if not tried(lambda rows=rows, waiting=waiting: look(rows, waiting)):  # type: ignore[misc]
            halve(room, rows.stop - rows.start, device)
            middle = (rows.start + rows.stop) // 2
            left[:0] = [(slice(rows.start, middle), dict(waiting)), (slice(middle, rows.stop), dict(waiting))]


def of(part: Sequence[int]) -> slice:
    """The slice that a part of a range is."""
    return slice(part[0], part[-1] + 1)


def halve(room: AtOnce, count: int, device: torch.device) -> None:
    """Makes do with half of `count` items at once, which were too much, and says so.

    Raises:
        ResourceError: it was a single one.
    """
    accelerator.empty_cache(device)
    if count == 1:
        raise ResourceError(f"not enough memory on {device} for one sequence; use a shorter --length or --device cpu")
    room.most = -(-count // 2)
    said = f"not enough memory on {device}: going on with {room.most} sequences at a time"
    for lines in LISTENERS:
        if said not in lines:
            lines.append(said)
    warnings.warn(said, stacklevel=4)


def tried(run: Callable[[], T]) -> tuple[T] | None:
    """What it gives, or None for a lack of memory: the frames that hold what was allocated are gone by then."""
    try:
        return (run(),)
    except torch.OutOfMemoryError:
        return None
