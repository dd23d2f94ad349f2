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

# Adam's best rate falls with the width (Yang et al. 2022, https://arxiv.org/abs/2203.03466): where the search begins.
FIRST_TIMES_WIDTH = 0.064
ADAPTERS = 10  # adapters bear about ten times the rate of whole weights
FACTOR = math.sqrt(10)
LOWEST, HIGHEST = 1e-6, 0.1
# What a rate may lack of the best's gain, and of the loss, to have won nearly as much. Where much is to be won, a
# tenth of it is a lot: with two layers of five gone, such a rate led to a perplexity of 7.3, the best one to 5.8.
NEARLY, AT_MOST = 0.1, 0.05


class Tried(NamedTuple):
    """A rate, and the loss on the held-out sequences after a short run with it."""

    rate: float
    held_out: float


def first_rate(how: str, width: int) -> float:
    """A middling rate for a model whose hidden states have this width."""
    return FIRST_TIMES_WIDTH / width * (ADAPTERS if how == "lora" else 1)


def short_steps(steps: int) -> int:
    """Steps of a short run: a tenth of the real one, 8 to 40. Fewer would favour rates that are too low."""
    return min(40, max(8, steps // 10), steps)


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
    """The highest rate that won nearly as much as the best; the lowest of all if none led below the start.

    A short run pays in full for what a higher rate disturbs at first, and has not yet got much of what it wins later.
    """
    most = start - min(t.held_out for t in tried)
    if most <= 0:
        return tried[0].rate
    return max(t.rate for t in tried if start - t.held_out >= most - min(NEARLY * most, AT_MOST))
