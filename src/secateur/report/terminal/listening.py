"""How far long work has come, told from wherever it's done to whoever shows it.

Reading text, tokenising and evaluating are done far below the stage that they are a part of, often through libraries'
own loops. `tell` costs nothing where nobody listens; it changes no result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def tell(what: str, done: int, total: int) -> None:
    """Says that `done` of `total` parts of something are done."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Hears what is told meanwhile, in place of whoever has listened before; None: nobody does."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
