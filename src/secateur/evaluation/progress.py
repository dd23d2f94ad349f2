"""A progress bar with an ETA for work that turns out to be long; nothing at all for work that doesn't."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from secateur.report.terminal.console import Console
from secateur.report.terminal.listening import tell

PATIENCE = 3.0  # seconds before a bar appears


@contextmanager
def progress(label: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the amount of work just done.

    The bar goes to stderr, if that is a terminal, and is wiped at the end. Whoever listens is told in any case.
    """
    console = Console(stderr=True)
    done = 0

    def count(amount: int) -> None:
        nonlocal done
        done += amount
        tell(label, done, total)

    if quiet or not console.is_terminal:
        yield count
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task(label, total=total)
    begin = time.monotonic()

    def advance(amount: int) -> None:
        count(amount)
        bar.update(task, advance=amount)
        if not bar.live.is_started and time.monotonic() - begin > PATIENCE:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:  # else it would print an empty line
            bar.stop()
