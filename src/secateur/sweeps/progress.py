"""How far a sweep is: a bar with the time that is left on a terminal, elsewhere a line for each trial."""

from __future__ import annotations

import os
import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from secateur.report import numbers as fmt
from secateur.report.schema.sweep import TrialOutcome
from secateur.report.terminal.console import Console


class SweepProgress:
    """Told of each trial that is over.

    Args:
        total: trials that are to be run now.
        before: those that were done already.
    """

    def __init__(self, total: int, before: int, quiet: bool = False) -> None:
        self._total, self._before, self._quiet = total, before, quiet
        self._over = self._failed = 0
        self._begin = time.monotonic()
        self._console = Console(stderr=True, markup=False, highlight=False)
        self._live: Progress | None = None
        if not quiet and self._console.is_terminal and not os.environ.get("CI"):
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), TimeElapsedColumn())
            self._live = Progress(*columns, console=self._console, transient=True)

    def __enter__(self) -> SweepProgress:
        if self._live is not None:
            self._live.start()
            self._live.add_task(self._told(), total=self._total)
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
        said = f"failed: {outcome['error']}" if outcome["error"] is not None else fmt.seconds(outcome["seconds"])
        line = f"{outcome['name']}: {said}"
        if self._live is not None:
            self._live.console.print(line, soft_wrap=True)
            self._live.update(self._live.task_ids[0], completed=self._over, description=self._told())
        elif not self._quiet:
            self._console.print(f"{self._told()}: {line}", soft_wrap=True)

    def _told(self) -> str:
        """The pace of those that are over tells the time that the others will take, however many run at once."""
        parts = [f"trial {self._over}/{self._total}"]
        if self._over < self._total and self._over:
            left = (time.monotonic() - self._begin) / self._over * (self._total - self._over)
            parts.append(f"{fmt.seconds(left)} left")
        return ", ".join(parts + ([f"{self._failed} failed"] if self._failed else []))
