"""The output folder: nothing in it is touched until a run has succeeded, and nothing partial stays.

A run works in OUT/.secateur (its work area). At the end the finished files move into OUT by rename. A run
that fails on its input leaves OUT as it found it.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.errors import InputError, ResourceError

WORK = ".secateur"
MARK = "report.json"  # every finished run writes it last


class Workspace:
    """An output folder and its work area.

    Args:
        out: the folder; made if missing.
        overwrite: an earlier result of Secateur in it, or an interrupted run, may be replaced.
        resume: an interrupted run in it goes on.

    Raises:
        InputError: the folder isn't empty, is a file, or holds something that Secateur didn't make.
    """

    def __init__(self, out: str | Path, overwrite: bool = False, resume: bool = False) -> None:
        self.out = Path(out)
        self.work = self.out / WORK
        self.resume = resume
        self.overwrite = overwrite or resume
        self.keep = resume  # set once there is something worth resuming
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out}: is a file; give a folder for --out")
        others = [p.name for p in self.out.iterdir() if p.name != WORK] if self.out.is_dir() else []
        if others and not self.overwrite:
            raise InputError(f"{self.out}: is not empty; choose another --out, or give --overwrite")
        foreign = sorted(set(others) - _files_of_result(self.out))
        if foreign:
            raise InputError(
                f"{self.out}: holds what secateur didn't make ({foreign[0]}), so it won't be overwritten"
            )
        if self.work.is_dir() and not self.overwrite:
            raise InputError(f"{self.out}: holds an interrupted run; --resume continues it, --overwrite starts over")
        self._created = _first_missing(self.out)

    @contextmanager
    def open(self) -> Iterator[Workspace]:
        """Makes the work area; removes it (and folders made for it) again if anything goes wrong.

        Once `keep` is set, what is finished stays for `--resume`.
        """
        try:
            if not self.resume:
                shutil.rmtree(self.work, ignore_errors=True)
            shutil.rmtree(self.final, ignore_errors=True)
            self.final.mkdir(parents=True)
            self.blocks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._discard()
            raise _as_error(error, self.out, False) from None
        try:
            yield self
        except OSError as error:
            self._discard()
            raise _as_error(error, self.out, self.keep) from error
        except BaseException:
            self._discard()
            raise
        shutil.rmtree(self.work, ignore_errors=True)

    def _discard(self) -> None:
        if self.keep:
            shutil.rmtree(self.final, ignore_errors=True)
            return
        shutil.rmtree(self.work, ignore_errors=True)
        if self._created is not None and self.out.is_dir() and not any(self.out.iterdir()):
            shutil.rmtree(self._created, ignore_errors=True)

    @property
    def blocks(self) -> Path:
        """Finished blocks, one file each."""
        return self.work / "blocks"

    @property
    def final(self) -> Path:
        """The checkpoint as it'll be delivered."""
        return self.work / "final"

    def deliver(self, last: str = MARK) -> None:
        """Moves everything from `final` into the output folder, `last` after all others."""
        old = [p for p in self.out.iterdir() if p.name != WORK]
        if old and not self.overwrite:
            raise InputError(
                f"{self.out}: files appeared in it during the run ({old[0].name}); nothing was overwritten"
            )
        trash = self.work / "replaced"
        trash.mkdir(exist_ok=True)
        for path in old:
            path.rename(trash / path.name)
        for path in sorted(self.final.iterdir(), key=lambda p: p.name == last):
            path.rename(self.out / path.name)


def _files_of_result(folder: Path) -> set[str]:
    """Names of the files that a finished run has written there, by its report; empty if there's none."""
    try:
        report = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return {MARK, *report["files"]} if "secateur" in report else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _first_missing(path: Path) -> Path | None:
    """The topmost folder that making `path` would make."""
    missing = None
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing = folder
    return missing


def _as_error(error: OSError, out: Path, kept: bool) -> Exception:
    resume = "; what is finished stays, --resume goes on from there" if kept else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{out}: the disk is full; free some space or choose another --out{resume}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"{out}: can't be written ({error.strerror}); choose another --out{resume}")
    return error
