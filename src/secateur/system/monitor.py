"""What a run shows while it works: one display, one event file, and the time and peak memory of each stage.

On a terminal it's one live line: stage, block, bar, time left, memory now and at its peak. Elsewhere (a pipe, or
with `CI` set) it's a plain line at the start of each stage and now and then; with `quiet` nothing.

The events go to `events.jsonl` whatever is shown, one JSON object a line. Each has `time` (seconds since 1970) and
`event`, which is one of

    run        the input was read and found good, work begins or goes on: stages (planned names), ranks, resumed
    stage      a stage begins: name, number (from 1), of (how many are planned), total (parts, null if unknown)
    step       a part of it is done: stage, done, total, text, seconds (since the stage began), left (seconds, null
               if unknown), memory_bytes
    stage_end  name, seconds, peak_memory_bytes
    note       text: a line for whoever watches, such as the forecast of a training
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from secateur.report.schema.report import StageFacts
from secateur.report.terminal.console import Console
from secateur.report.terminal.listening import listening, nobody
from secateur.system import halving
from secateur.system.display import Pace, clock, is_live, live_line, part, until
from secateur.system.peak_memory import PeakMemory

PLAIN_SECONDS = 10.0
RECENT = 8  # steps that tell the pace
PART_SECONDS = 1.0  # between two lines about a part that is told of from below

ProgressStep = Callable[..., None]


@dataclass
class Stage:
    name: str
    seconds: float
    peak_memory_bytes: int
    cpu_seconds: float  # of this process, all threads; hardly feels what else the machine does


class _Part(Pace):
    """A part of a stage that tells how far it is, and when that was shown."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = time.monotonic()

    def due(self) -> bool:
        """Whether it's time to show it again."""
        now = time.monotonic()
        if now - self._shown < PART_SECONDS:
            return False
        self._shown = now
        return True

    def facts(self, begin: float, left: float | None, memory: int) -> dict[str, Any]:
        """What the event says."""
        return {
            "done": self.done,
            "total": self.total,
            "text": self.what,
            "seconds": round(time.monotonic() - begin, 3),
            "left": None if left is None else round(left, 3),
            "memory_bytes": memory,
        }


class Monitor:
    """Times the stages of a run and tells whoever watches. Close it, or use it as a context manager.

    Args:
        device: whose memory counts.
        quiet: show nothing.
        planned: names of the stages to come, in order, for "stage 2 of 6".
    """

    def __init__(self, device: torch.device, quiet: bool = False, planned: Sequence[str] = ()) -> None:
        self.stages: list[Stage] = []
        self.prefix = ""  # of the names of stages to come
        self._planned = list(planned)
        self._memory = PeakMemory(device)
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._live: Progress | None = None
        if not quiet and is_live(self._console):
            self._live = live_line(self._console, lambda: str(self._memory))
        self._last_line = time.monotonic()
        self._file: Path | None = None
        self._waiting: list[str] = []
        self.notes: list[str] = []  # of what the device's memory didn't suffice for
        halving.LISTENERS.append(self.notes)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        halving.LISTENERS[:] = [lines for lines in halving.LISTENERS if lines is not self.notes]
        if self._live is not None:
            self._live.stop()
        self._memory.close()

    def facts(self) -> list[StageFacts]:
        """The stages so far, as a report lists them."""
        return [
            {
                "name": stage.name,
                "seconds": stage.seconds,
                "peak_memory_bytes": stage.peak_memory_bytes,
                "cpu_seconds": stage.cpu_seconds,
            }
            for stage in self.stages
        ]

    def record(self, file: Path, ranks: int = 1, resumed: bool = False) -> None:
        """Writes events to `file` from now on, with those before this call; goes on with a file that is there."""
        self._file = file
        self._write("".join(self._waiting))
        self._waiting.clear()
        self._event("run", stages=self._planned, ranks=ranks, resumed=resumed)

    def _event(self, kind: str, **facts: Any) -> None:
        self._write(json.dumps({"time": round(time.time(), 3), "event": kind, **facts}) + "\n")

    def _write(self, text: str) -> None:
        if self._file is None:
            self._waiting.append(text)
        elif self._file.parent.is_dir():
            with self._file.open("a", encoding="utf-8") as handle:
                handle.write(text)

    def say(self, line: str) -> None:
        """A line for whoever watches, such as a forecast; it's an event too."""
        self._event("note", text=line)
        if not self._quiet:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[ProgressStep]:
        """One stage of the run.

        Yields `step(text)`, to be called after each of `total` parts; `step(text, skipped=True)` for one that took
        no work, so that it tells nothing about the time that the others will take.
        """
        begin, processor = time.monotonic(), time.process_time()
        name = self.prefix + name
        number = len(self.stages) + 1
        planned = max(len(self._planned), number)
        self._memory.take()
        self._event("stage", name=name, number=number, of=planned, total=total)
        title = f"{number}/{planned} {name}"
        self._begin(title, total)
        done = 0
        moments = deque([begin], RECENT)
        inner = _Part()

        def step(text: str = "", skipped: bool = False) -> None:
            nonlocal done
            done += 1
            now = time.monotonic()
            pace = None if skipped else (now - moments[0]) / len(moments)
            if skipped:
                moments.clear()
            moments.append(now)
            left = None if pace is None or not total else pace * (total - done)
            self._event(
                "step",
                stage=name,
                done=done,
                total=total,
                text=text,
                seconds=round(now - begin, 3),
                left=None if left is None else round(left, 3),
                memory_bytes=self._memory.now,
            )
            self._tell(title, text, done, total, left)

        def hear(what: str, at: int, of: int) -> None:
            """Of a stage that can't say itself how much it has to do: what is told from below it."""
            left = inner.left(what, at, of)
            if inner.due():
                self._event("step", stage=name, **inner.facts(begin, left, self._memory.now))
                self._tell(title, what, at, of, left)

        with listening(hear if total is None else nobody):
            yield step
        seconds = round(time.monotonic() - begin, 3)
        self.stages.append(Stage(name, seconds, self._memory.take(), round(time.process_time() - processor, 3)))
        self._event("stage_end", name=name, seconds=seconds, peak_memory_bytes=self.stages[-1].peak_memory_bytes)

    def _begin(self, title: str, total: int | None) -> None:
        if self._live is not None:
            self._live.start()
            for task in self._live.task_ids:
                self._live.remove_task(task)
            self._live.add_task(title, total=total, part=f"0/{total}" if total else "", until=None)
        elif not self._quiet:
            self._console.print(f"{title} ...", highlight=False)

    def _tell(self, title: str, text: str, done: int, total: int | None, left: float | None) -> None:
        told = part(text, done, total)
        if self._live is not None:
            self._live.update(self._live.task_ids[-1], completed=done, total=total, part=told, until=until(left))
        elif not self._quiet and time.monotonic() - self._last_line > PLAIN_SECONDS:
            self._last_line = time.monotonic()
            rest = "" if left is None else f", {clock(left)} left"
            self._console.print(f"{title}: {told}{rest}, {self._memory}", highlight=False, soft_wrap=True)
