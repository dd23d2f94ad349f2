"""Sums over tokens, in parts that the memory of a device suffices for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def over_tokens(make: Callable[..., Tensor], *given: Tensor | slice) -> Iterator[Tensor]:
    """Yields `make(*given)`; where that is too much for the memory, the same of halves of the tokens, and so on.

    Args:
        make: a sum over tokens, so that those of the halves add up to it.
        given: tensors (tokens, ...), which are divided, and what else `make` takes.

    Raises:
        torch.OutOfMemoryError: one token is too much.
    """
    found = _tried(make, given)
    if found is not None:
        yield found
        return
    count = next(len(each) for each in given if isinstance(each, Tensor))
    if count < 2:
        raise torch.OutOfMemoryError("not enough memory for one token")
    for rows in (slice(count // 2), slice(count // 2, None)):
        yield from over_tokens(make, *(each[rows] if isinstance(each, Tensor) else each for each in given))


def _tried(make: Callable[..., Tensor], given: tuple[Tensor | slice, ...]) -> Tensor | None:
    """What it gives, or None for a lack of memory: the frames that hold what was allocated are gone by then."""
    try:
        return make(*given)
    except torch.OutOfMemoryError:
        return None
