"""How far a sweep is: a bar with the time that is left on a terminal, elsewhere a line for each trial."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeElapsedColumn
from rich.text import Text

from secateur.report import numbers as fmt
from secateur.report.schema.sweep import TrialOutcome
from secateur.report.terminal.console import Console


class _Told(ProgressColumn):
    """A text that is asked for anew whenever the bar is drawn."""

    def __init__(self, tell: Callable[[], str]) -> None:
        super().__init__()
        self._tell = tell

    def render(self, task: Task) -> Text:
        return Text(self._tell())


class SweepProgress:
    """Told of each trial that is over.

    Args:
        total: trials that are to be run now.
        before: those that were done already.
    """

    def __init__(self, total: int, before: int, quiet: bool = False) -> None:
        self._total, self._before, self._quiet = total, before, quiet
        self._over = self._failed = 0
        self._begin = self._end = time.monotonic()  # its end as it's foreseen, once a trial is over
        self._console = Console(stderr=True, markup=False, highlight=False)
        self._live: Progress | None = None
        if not quiet and self._console.is_terminal and not os.environ.get("CI"):
            columns = (_Told(self._told), BarColumn(bar_width=20), TimeElapsedColumn())
            self._live = Progress(*columns, console=self._console, transient=True, refresh_per_second=2)

    def __enter__(self) -> SweepProgress:
        if self._live is not None:
            self._live.start()
            self._live.add_task("", total=self._total)
        elif not self._quiet:
            self._console.print(f"{self._total} trials to run, {self._before} done before")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self, outcome: TrialOutcome) -> None:
        """One more is over."""
        self._over += 1
        self._failed += outcome["error"] is not None
        now = time.monotonic()
        self._end = now + (now - self._begin) / self._over * (self._total - self._over)
        said = f"failed: {outcome['error']}" if outcome["error"] is not None else fmt.seconds(outcome["seconds"])
        line = f"{outcome['name']}: {said}"
        if self._live is not None:
            self._live.console.print(line, soft_wrap=True)
            self._live.update(self._live.task_ids[0], completed=self._over)
        elif not self._quiet:
            self._console.print(f"{self._told()}: {line}", soft_wrap=True)

    def _told(self) -> str:
        """The pace of those that are over tells the time that the others will take, however many run at once."""
        parts = [f"trial {self._over}/{self._total}"]
        if self._over < self._total and self._over:
            parts.append(f"{fmt.seconds(max(0.0, self._end - time.monotonic()))} left")
        return ", ".join(parts + ([f"{self._failed} failed"] if self._failed else []))
