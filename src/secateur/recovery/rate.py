"""A learning rate that does no harm: short runs from the same start tell which rates help and which erase.

Each short run has the schedule of the real one (warm-up, then a cosine to nothing) and the same sequences, and is
judged on the held-out ones. From a middling rate the search goes up while that helps, and down if it doesn't (a range
test as Smith 2017, https://arxiv.org/abs/1506.01186, but judged by what is left at the end, not by the slope on the
way).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

FIRST = {"full": 3e-4, "distill": 3e-4, "lora": 2e-3}
FACTOR = math.sqrt(10)
LOWEST, HIGHEST = 1e-6, 0.1
# A long run bears less than a short one: of the rates that reach most of the best one's gain, the lowest is taken.
ENOUGH = 0.9


class Tried(NamedTuple):
    """A rate, and the loss on the held-out sequences after a short run with it."""

    rate: float
    held_out: float


def short_steps(steps: int) -> int:
    """Steps of a short run: a thirtieth of the real one, 8 to 30."""
    return min(30, max(8, steps // 30), steps)


def search(attempt: Callable[[float], float], first: float) -> list[Tried]:
    """Tries rates a factor apart, upwards while it gets better, then downwards if it never did.

    Args:
        attempt: rate -> loss on the held-out sequences.
    """
    tried = [Tried(first, attempt(first))]

    def go(factor: float) -> None:
        while LOWEST <= (rate := tried[-1].rate * factor) <= HIGHEST:
            tried.append(Tried(rate, attempt(rate)))
            if not tried[-1].held_out < tried[-2].held_out:
                return

    go(FACTOR)
    if len(tried) == 2:
        up = tried.pop()
        go(1 / FACTOR)
        tried.append(up)
    return sorted(tried)


def choose(tried: list[Tried], start: float) -> float:
    """The lowest rate with `ENOUGH` of the largest gain over the loss at the start; the lowest if none gains."""
    best = min(tried, key=lambda t: t.held_out)
    gain = start - best.held_out
    if not gain > 0:
        return min(t.rate for t in tried)
    return min(t.rate for t in tried if start - t.held_out >= ENOUGH * gain)
