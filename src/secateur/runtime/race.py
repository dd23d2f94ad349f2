"""Times products in turns, as a token finds them: its weights come from memory, not from a cache."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

FLUSH_BYTES = 96 << 20


def race(runs: int, *works: Callable[[], Tensor]) -> list[float]:
    """The best seconds of each, taken in turns, with cold caches: what else the machine does only adds time."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8)
    times: list[list[float]] = [[] for _ in works]
    for run in range(runs + 1):
        for work, own in zip(works, times, strict=True):
            flush.fill_(run)
            begin = time.perf_counter()
            work()
            if run:  # the first compiles
                own.append(time.perf_counter() - begin)
    return [min(own) for own in times]
