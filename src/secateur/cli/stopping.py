"""Ctrl-C, SIGTERM, and streams that are closed or speak another alphabet: a process that ends as shells expect.

It imports next to nothing, so that it's in place before the imports that take seconds.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from secateur.errors import Terminated

_AGAIN = 0.05  # seconds until a signal that came during an import is looked at again
_received: list[int] = []


def exit_code() -> int:
    """Of a process that was stopped: 130 or 143, by the signal that came first."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def listen() -> None:
    """Takes over Ctrl-C (unless it's ignored, as in a shell's background jobs) and SIGTERM."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    """Ends at once where nothing is underway; else raises, so that the run tidies up.

    An exception that is raised in the middle of an import may be swallowed there, or crash the library that is half
    imported, so it waits for the end of that; a second signal doesn't.
    """
    if number != getattr(signal, "SIGALRM", None):
        _received.append(number)
    running, importing = _where(frame)
    if not running or (importing and len(_received) > 1):
        if os.environ.get("RANK", "0") == "0":
            os.write(2, b"error: stopped\n")
        os._exit(exit_code())
    if importing and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        return
    raise Terminated if _received[0] == signal.SIGTERM else KeyboardInterrupt


def _where(frame: FrameType | None) -> tuple[bool, bool]:
    """Whether a function of ours is at work, and whether something is being imported."""
    running = importing = False
    while frame is not None:
        name, code = str(frame.f_globals.get("__name__")), frame.f_code
        own = name.startswith("secateur.") and not name.startswith(("secateur.cli", "secateur.__main__"))
        running |= own and code.co_name != "<module>"
        importing |= code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return running, importing


def open_streams() -> None:
    """Gives a process whose streams were closed empty ones, so that no file it opens takes their place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open to the end
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def write_anything() -> None:
    """What the terminal's alphabet lacks is shown as a question mark."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def drop_output() -> None:
    """What is left to be written goes nowhere: whoever read it is gone, or the disk is full."""
    with suppress(OSError, AttributeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
