"""The lock of a work area, so that two runs never share one."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from filelock import lock_descriptor


class Lock:
    """A file that is locked until the block ends or the process does.

    Where the file system has no locks (some network folders), nobody has it.

    Raises:
        BlockingIOError: someone else has it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab")
        held = True
        with suppress(OSError):
            held = lock_descriptor(self._file.fileno(), blocking=False)
        if not held:
            self._file.close()
            raise BlockingIOError(f"{path}: locked by another process")

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if sys.platform == "win32":  # an open file can't be removed there, so the work area is still around it
            with suppress(OSError):
                if {inner.name for inner in self._path.parent.iterdir()} == {self._path.name}:
                    self._path.unlink()
                    self._path.parent.rmdir()
