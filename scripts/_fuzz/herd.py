"""Runs workers, each in a process of its own, and notices when one dies or hangs."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SCRIPTS = Path(__file__).resolve().parents[1]
HANG = 20.0  # seconds of work on one case; the first also imports everything
START = 60.0
PATIENCE = 15  # times as long on the clock: others may have the processor, or it sleeps
BAD = ("traceback", "signal", "hang", "harmed")


@dataclass
class Found:
    """What became of the cases of one target."""

    counts: Counter[str] = field(default_factory=Counter)
    bad: list[dict[str, Any]] = field(default_factory=list)


def build(target: str, root: Path) -> None:
    """Makes the folders of a target, and one beside them that nothing may touch."""
    from _fuzz.targets import TARGETS

    (root / "victim").mkdir(parents=True)
    (root / "victim" / "thesis.txt").write_text("years of work\n")
    TARGETS[target].build(root)


def tried(target: str, root: Path, seed: int, first: int, count: int, until: float | None = None) -> Found:
    """Tries `count` cases from `first` on, or as many as there's time for."""
    found, following = Found(), first
    while following < first + count and (until is None or time.monotonic() < until):
        words = [target, str(root), str(seed), str(following), str(first + count - following)]
        for number, case, outcome, detail in _outcomes(words, None, until):
            found.counts[outcome] += 1
            if outcome in BAD:
                found.bad.append({"target": target, **case, "class": outcome, "said": detail})
            following = number + 1
        if not found.counts:
            raise RuntimeError(f"the worker for {target} ended before its first case")
    return found


def replayed(case: dict[str, Any], root: Path) -> tuple[str, str]:
    """Class and words of one case that was kept."""
    words = [case["target"], str(root), "0", "replay"]
    return next((outcome, detail) for _, _, outcome, detail in _outcomes(words, json.dumps(case), None))


def _outcomes(words: list[str], given: str | None, until: float | None) -> Iterator[tuple[int, Any, str, str]]:
    """(number, case, class, words) of each case of one worker, until it ends, dies or hangs."""
    path = os.pathsep.join([str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "_fuzz.worker", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(given or "")
    process.stdin.close()
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    number, case, limit = -1, None, START
    try:
        while True:
            line = _next(lines, process.pid, limit)
            if line is None:
                break
            kind, text, rest = line.split(" ", 2)
            if kind == "begin":
                number, case, limit = int(text), json.loads(rest), HANG if number >= 0 else START
                continue
            outcome, detail = rest.split(" ", 1)
            yield number, case, outcome, json.loads(detail)
            case = None
            if until is not None and time.monotonic() > until:
                return
        code = process.wait()
        if code < 0 and case is not None:
            yield number, case, "signal", signal.Signals(-code).name
        elif case is not None:
            yield number, case, "traceback", f"the process ended with {code}"
    except queue.Empty:
        if case is not None:
            yield number, case, "hang", f"more than {limit:.0f} s"
    finally:
        process.kill()
        process.wait()


def _next(lines: queue.Queue[str | None], pid: int, limit: float) -> str | None:
    """The next line; raises queue.Empty where the worker hangs."""
    begin, worked = time.monotonic(), _worked(pid)
    while True:
        try:
            return lines.get(timeout=1)
        except queue.Empty:
            waited = time.monotonic() - begin
            if _worked(pid) - worked > limit or waited > PATIENCE * limit:
                raise


def _worked(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def _read(stream: Any, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line.rstrip("\n"))
    lines.put(None)
