"""A clock that tells what it's told."""

from __future__ import annotations


class Clock:
    """In the place of a timed model: a decoding step takes `value` seconds, a prompt as many."""

    answer = 4

    def __init__(self, value: float) -> None:
        self.value = value

    def run(self) -> tuple[float, float]:
        return self.value, self.answer * self.value
