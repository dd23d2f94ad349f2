"""The folder of a sweep: a folder for each trial, the record, the page, and a work area while it goes on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.config.sweep import PAGE, RECORD
from secateur.errors import InputError
from secateur.model.json_files import read_object
from secateur.workspace.lock import Lock
from secateur.workspace.ownership import LOCK, OWNER, WORK, discard, is_regular

OURS = "secateur sweep\n"
STARTS = "starts"  # of each trial, a line for each time that it was begun
MOST_BYTES = 2**28


def check_folder(out: Path) -> None:
    """Refuses a folder for a sweep that holds something else.

    Raises:
        InputError: it is a file, or neither empty nor a sweep's.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder for --out")
    if not out.exists() or not any(out.iterdir()):
        return
    if not is_sweep_area(out) and (os.path.lexists(out / WORK) or "trials" not in read_record(out)):
        raise InputError(f"{out}: is not empty and holds no sweep; choose another --out")
    if os.path.lexists(out / PAGE) and PAGE not in read_record(out).get("files", ()):
        raise InputError(f"{out}: {PAGE} in it is none that secateur made; move it away")


def read_record(out: Path) -> dict[str, Any]:
    """The record of an earlier sweep; empty where there's none."""
    if not is_regular(out, RECORD):
        return {}
    try:
        found = read_object(out / RECORD, most_bytes=MOST_BYTES)
    except InputError:
        return {}
    return found if "secateur" in found else {}


def is_sweep_area(out: Path) -> bool:
    """Whether a sweep goes on in a folder, or was interrupted."""
    work = out / WORK
    if work.is_symlink() or not is_regular(work, OWNER):
        return False
    with (work / OWNER).open("rb") as handle:
        return handle.read(len(OURS) + 1) == OURS.encode()


@contextmanager
def open_area(out: Path) -> Iterator[None]:
    """Makes the work area, and removes it when all is done; an exception leaves it to the sweep that goes on.

    Raises:
        InputError: another sweep is at work in it.
    """
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    (work / OWNER).write_text(OURS, encoding="utf-8")
    try:
        lock = Lock(work / LOCK)
    except BlockingIOError:
        raise InputError(f"{out}: another sweep is at work in it; wait for it or choose another --out") from None
    with lock:
        discard(work / STARTS)
        (work / STARTS).mkdir()
        try:
            yield
        except InputError:  # no trial has begun, so a folder without one is no sweep's
            if {path.name for path in out.iterdir()} == {WORK}:
                discard(work)
                out.rmdir()
            raise
        discard(work)


def note_start(out: Path, name: str) -> None:
    """Remembers that a trial begins, and in which process."""
    line = json.dumps({"host": platform.node(), "pid": os.getpid()}) + "\n"
    with (out / WORK / STARTS / name).open("a", encoding="utf-8") as handle:
        handle.write(line)


def starts(out: Path, name: str) -> int:
    """How often a trial was begun since the sweep began or went on."""
    file = out / WORK / STARTS / name
    return len(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else 0


def write_file(out: Path, name: str, text: str) -> None:
    """Writes a file of the sweep by a rename, so that it's there as a whole or not at all."""
    partial = out / WORK / f"{name}.partial"
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(out / name)
