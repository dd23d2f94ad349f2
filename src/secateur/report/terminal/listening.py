"""How far long work has come, told from wherever it's done to whoever shows it.

Reading text, loading and evaluating are done far below the stage that they are a part of, often through libraries'
own loops, and some in processes of their own. `tell` costs nothing where nobody listens; it changes no result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TypeVar

Part = TypeVar("Part")
Listener = Callable[[str, int, int], None]

MARK = "secateur-told:"  # before each line by which a child process tells its parent
LINE_SECONDS = 0.5  # between two of them

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def tell(what: str, done: int, total: int) -> None:
    """Says that `done` of `total` parts of something are done."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


def telling(what: str, parts: Iterable[Part], total: int) -> Iterator[Part]:
    """The parts one by one; says before each how many are done."""
    for done, part in enumerate(parts):
        tell(what, done, total)
        yield part


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Hears what is told meanwhile, in place of whoever has listened before; None: as if nobody had."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def heard_already() -> bool:
    """Whether somebody listens."""
    return _listener.get() is not None


def nobody(what: str, done: int, total: int) -> None:
    """Listens and shows nothing, so that no other display begins."""


def telling_parent() -> AbstractContextManager[None]:
    """In a child process: what is told meanwhile are lines on stdout, for `heard` in its parent."""
    due = 0.0

    def write(what: str, done: int, total: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + LINE_SECONDS
            print(MARK + json.dumps([what, done, total]), flush=True)

    return listening(write)


def heard(line: str) -> bool:
    """Whether a line of a child process tells how far it is, which is told on then."""
    if not line.startswith(MARK):
        return False
    tell(*json.loads(line.removeprefix(MARK)))
    return True
