"""Run a command and watch its memory from outside, with the same ruler for every tool."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL = 0.005  # seconds between two looks at the resident set; one look costs some 20 microseconds


@dataclass(frozen=True)
class Watched:
    """A finished command.

    seconds   wall clock of the whole process
    cpu       processor seconds of it, all threads; unlike the wall clock it hardly feels other work on the machine
    resident  (moment on time.monotonic(), resident bytes) at every look; the clock is the whole system's, so
              moments that the process itself reports on the same clock fall between these
    stdout    what it printed
    load      the machine's load average of the last minute before the start: 0 is quiet
    """

    seconds: float
    cpu: float
    resident: tuple[tuple[float, int], ...]
    stdout: str
    load: float

    def peak(self, begin: float = -math.inf, end: float = math.inf) -> int:
        """Highest resident bytes seen between two moments."""
        return max(size for moment, size in self.resident if begin <= moment <= end)


def watch(command: list[str], threads: int, path: Path | None = None) -> Watched:
    """Run a command to its end on `threads` threads, offline, with `path` in front of PYTHONPATH.

    Raises SystemExit with the tail of its stderr if it fails.
    """
    width = str(threads)
    env = os.environ | {"OMP_NUM_THREADS": width, "MKL_NUM_THREADS": width, "HF_HUB_OFFLINE": "1"}
    env |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    if path is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), env.get("PYTHONPATH")]))
    load, cpu = os.getloadavg()[0], 0.0
    resident: list[tuple[float, int]] = []
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        begun = time.monotonic()
        with psutil.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=env) as process:
            try:
                while process.poll() is None:
                    with process.oneshot():
                        resident.append((time.monotonic(), process.memory_info().rss))
                        cpu = sum(process.cpu_times()[:2])
                    time.sleep(INTERVAL)
            except BaseException:
                process.kill()
                raise
            ended = time.monotonic()
        out.seek(0), err.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)}\nfailed with {process.returncode}:\n{err.read()[-2000:]}")
        return Watched(ended - begun, cpu, tuple(resident), out.read(), load)
