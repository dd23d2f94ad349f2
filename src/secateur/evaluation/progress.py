"""How far a long piece of evaluation is: told to whoever listens, shown on a terminal where nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from secateur.report.terminal.listening import tell
from secateur.system.display import display


@contextmanager
def progress(label: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the amount of work just done."""
    done = 0

    def count(amount: int) -> None:
        nonlocal done
        done += amount
        tell(label, done, total)

    with display(label, quiet):
        yield count
