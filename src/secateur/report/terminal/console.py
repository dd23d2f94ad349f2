"""The one kind of console that anything is shown on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from secateur.report.terminal.escape import printable


class Console(rich.console.Console):
    """Rich's, but control characters in what is shown are spelled out; colours and the like are rich's own affair."""

    def render(self, renderable: Any, options: rich.console.ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def plain(given: Console | None) -> Console:
    """The console that was given, or one without markup: a path like `models/[v2]` stays what it is."""
    return given or Console(markup=False, highlight=False)
