"""One live line on a terminal while something works: what it is, how far it has come, how long it takes.

Knows no torch, so that it can be there before torch is imported, which takes seconds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from secateur.report.terminal.console import Console
from secateur.report.terminal.listening import heard_already, listening


class Pace:
    """How fast a part of the work that is told of goes, since it began."""

    def __init__(self) -> None:
        self.what, self.done, self.total = "", 0, 0
        self._begin = time.monotonic()

    def left(self, what: str, done: int, total: int) -> float | None:
        """Seconds that are left; None where nothing is done yet."""
        if what != self.what or done < self.done:
            self._begin = time.monotonic()
        self.what, self.done, self.total = what, done, total
        return (time.monotonic() - self._begin) * (total - done) / done if done else None


@contextmanager
def display(title: str, quiet: bool = False) -> Iterator[None]:
    """Shows a live line meanwhile, with what is told, if stderr is a terminal.

    Within another display, or a stage of a monitor, it shows nothing: that one hears what is told.
    """
    console = Console(stderr=True)
    if quiet or heard_already() or not is_live(console):
        yield
        return
    shown, pace = live_line(console), Pace()
    task = shown.add_task(title, total=None, part="", until=None)

    def hear(what: str, done: int, total: int) -> None:
        left = pace.left(what, done, total)
        shown.update(task, completed=done, total=total, part=part(what, done, total), until=until(left))

    with shown, listening(hear):
        yield


def starting(quiet: bool = False) -> AbstractContextManager[None]:
    """A display for the seconds in which a command imports its libraries; none where they are there already."""
    return display("loading torch and transformers", quiet or "transformers" in sys.modules or _is_later_rank())


def _is_later_rank() -> bool:
    """Whether this is a process of torchrun's other than the first, which shows what there is to see."""
    return os.environ.get("RANK", "0") != "0"


def is_live(console: Console) -> bool:
    """Whether a line can be drawn again and again there."""
    return console.is_terminal and not os.environ.get("CI")


def live_line(console: Console, memory: Callable[[], str] = str) -> Progress:
    """The line, wiped at its end. Its tasks have the fields `part` and `until` (of `time.monotonic`, or None)."""
    return Progress(
        _Column(lambda task: task.description),
        BarColumn(bar_width=8),
        _Column(lambda task: task.fields["part"]),
        _Column(lambda task: clock(task.elapsed or 0.0)),
        _Column(_left),
        _Column(lambda task: memory()),
        console=console,
        transient=True,
        refresh_per_second=4,
    )


def part(text: str, done: int, total: int | None) -> str:
    """What is done, in a few words."""
    return ", ".join(filter(None, [f"{done:,}/{total:,}" if total else "", text]))


def until(left: float | None) -> float | None:
    """The moment at which so many seconds will have passed."""
    return None if left is None else time.monotonic() + left


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Column(ProgressColumn):
    """A text that never wraps."""

    def __init__(self, text: Callable[[Task], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(self._text(task))


def _left(task: Task) -> str:
    """Time left, counted down between two looks."""
    end = task.fields["until"]
    return "" if end is None else f"{clock(max(0.0, end - time.monotonic()))} left"
