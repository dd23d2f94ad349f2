"""What a run has decided: the first rank remembers it, every rank hears of it.

A decision is made once. An interrupted run that goes on finds it where the first rank keeps its notes (a journal on
disk), and no rank has to make it again, or might make it otherwise.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from secateur.system import distributed


class Notes(Protocol):
    """Where the first rank keeps what was decided."""

    def noted(self, key: str) -> Any:
        """What was noted under this key last; None if nothing was."""

    def note(self, key: str, value: Any) -> None:
        """Remembers a value that JSON can say."""


class Unwritten(UserDict[str, Any]):
    """Notes that last as long as the process."""

    def noted(self, key: str) -> Any:
        return self.get(key)

    def note(self, key: str, value: Any) -> None:
        self[key] = value


@dataclass(frozen=True)
class Decisions:
    """Asked by every rank, at the same time."""

    notes: Notes = field(default_factory=Unwritten)

    def known(self, key: str) -> Any:
        """What was decided before, or None."""
        return distributed.from_first(lambda: self.notes.noted(key))

    def note(self, key: str, value: Any) -> None:
        """Remembers the first rank's value."""
        distributed.on_first(lambda: self.notes.note(key, value))

    def decide(self, key: str, compute: Callable[[], Any]) -> Any:
        """What was decided before; else what `compute`, which every rank calls, gives on the first one.

        Args:
            compute: gives what JSON can say. Read back, keys are texts and tuples lists.
        """
        found = self.known(key)
        if found is None:
            found = distributed.share_object(compute(), 0)
            self.note(key, found)
        return found
