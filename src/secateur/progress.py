"""What a run shows while it works: one display, one event file, and the time and peak memory of each stage.

On a terminal it's a live line with a bar and an ETA; elsewhere (CI, a pipe) plain lines now and then; with
`quiet` nothing. The events go to `events.jsonl` whatever is shown.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SAMPLE_SECONDS = 0.02
PLAIN_SECONDS = 10.0


class PeakMemory:
    """Peak resident memory of this process since the last `take`, by sampling; on CUDA torch's own peak."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._process = psutil.Process()
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, self._process.memory_info().rss)

    @property
    def now(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        return int(self._process.memory_info().rss)

    def take(self) -> int:
        """The peak so far; starts over."""
        if self._device.type == "cuda":
            peak = int(torch.cuda.max_memory_allocated(self._device))
            torch.cuda.reset_peak_memory_stats(self._device)
            return peak
        peak, self._peak = max(self._peak, self.now), 0
        return peak

    def close(self) -> None:
        self._stop.set()


@dataclass
class Stage:
    name: str
    seconds: float
    peak_memory_bytes: int


@dataclass
class Monitor:
    """Times the stages of a run and tells whoever watches.

    Args:
        device: whose memory counts.
        quiet: show nothing.
        events: file that gets one JSON object a line, or None.
    """

    device: torch.device
    quiet: bool = False
    events: Path | None = None
    stages: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._memory = PeakMemory(self.device)
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._last_line = time.monotonic()

    def event(self, kind: str, **facts: Any) -> None:
        """Appends one line to the event file."""
        if self.events is not None and self.events.parent.is_dir():
            record = {"time": round(time.time(), 3), "event": kind, **facts}
            with self.events.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(record) + "\n")

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Any]:
        """One stage of the run. Yields `step(text)`, to be called after each of `total` parts."""
        begin = time.monotonic()
        self._memory.take()
        self.event("stage", name=name, total=total)
        live = not self.quiet and self._console.is_terminal
        if not self.quiet and not live:
            self._console.print(f"{name} ...", highlight=False)
        with self._bar(name, total) if live else _nothing() as bar:
            done = 0

            def step(text: str = "") -> None:
                nonlocal done
                done += 1
                self.event("step", stage=name, done=done, total=total, text=text, memory_bytes=self._memory.now)
                if bar is not None:
                    bar.update(
                        bar.task_ids[0], advance=1, description=f"{name} {text}".strip(), memory=self._memory_text
                    )
                elif not self.quiet and time.monotonic() - self._last_line > PLAIN_SECONDS:
                    self._plain(name, done, total, begin)

            yield step
        seconds = time.monotonic() - begin
        self.stages.append(Stage(name, round(seconds, 3), self._memory.take()))
        self.event(
            "stage_end", name=name, seconds=round(seconds, 3), peak_memory_bytes=self.stages[-1].peak_memory_bytes
        )

    @property
    def _memory_text(self) -> str:
        return f"{self._memory.now / 2**30:.2f} GiB"

    def _bar(self, name: str, total: int | None) -> Progress:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[memory]}"),
            console=self._console,
            transient=True,
        )
        bar.add_task(name, total=total, memory=self._memory_text)
        return bar

    def _plain(self, name: str, done: int, total: int | None, begin: float) -> None:
        self._last_line = time.monotonic()
        left = "" if not total else f", {(time.monotonic() - begin) / done * (total - done):.0f} s left"
        self._console.print(f"{name} {done}/{total or '?'}{left}, {self._memory_text}", highlight=False)

    def close(self) -> None:
        self._memory.close()


@contextmanager
def _nothing() -> Iterator[None]:
    yield None
