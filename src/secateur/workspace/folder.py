"""The output folder: nothing in it is touched until a run has succeeded, and nothing partial stays.

A run works in OUT/.secateur (its work area). At the end the finished files move into OUT by rename. A run
that fails on its input leaves OUT as it found it.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secateur.errors import InputError, ResourceError, SecateurError
from secateur.workspace.lock import Lock

WORK = ".secateur"
BLOCKS, JOURNAL, EVENTS, LOCK = "blocks", "journal.jsonl", "events.jsonl", "lock"
TRAINING = "training"  # states of a recovery
UNTRAINED = "untrained.jsonl"  # sequences of its text that the recovery leaves for the report
PRUNED = "pruned"  # the checkpoint that a recovery began with
STEPS = "steps"  # of a gradual run, all but the last
FINISHED = (BLOCKS, JOURNAL, EVENTS, TRAINING, STEPS)  # what an interrupted run leaves to the next one
MARK = "report.json"  # every finished run writes it last


class Area:
    """Where one pass over a model works.

    Args:
        work: its folder.
        resume: what is finished in it is gone on from.
        of: the area that this one is a part of.
    """

    def __init__(self, work: Path, resume: bool = False, of: Area | None = None) -> None:
        self.work = work
        self.resume = resume
        self.keep = resume  # set once there is something worth resuming
        self._of = of

    @property
    def blocks(self) -> Path:
        """Finished blocks, one file each."""
        return self.work / BLOCKS

    @property
    def final(self) -> Path:
        """The checkpoint as it'll be delivered."""
        return self.work / "final"

    def worth_keeping(self) -> None:
        """There is something to go on from now."""
        self.keep = True
        if self._of is not None:
            self._of.worth_keeping()

    def step(self, number: int) -> Area:
        """Where one step of a gradual run works; it stays as long as this does."""
        return Area(self.work / STEPS / str(number), self.resume, self)

    def tidy(self, keep: bool) -> None:
        """Empties the area; `keep`: but for what is finished."""
        for path in list(self.work.iterdir()) if self.work.is_dir() else []:
            if path.name != LOCK and not (keep and path.name in FINISHED):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


class Workspace(Area):
    """An output folder and its work area.

    Args:
        out: the folder; made if missing.
        overwrite: an earlier result of Secateur in it, or an interrupted run, may be replaced.
        resume: an interrupted run in it goes on; where there's none, the run begins.

    Raises:
        InputError: the folder isn't empty, is a file, or holds something that Secateur didn't make.
    """

    def __init__(self, out: str | Path, overwrite: bool = False, resume: bool = False) -> None:
        self.out = Path(out)
        super().__init__(self.out / WORK)
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out}: is a file; give a folder for --out")
        interrupted = self.work.is_dir()
        if interrupted and not (resume or overwrite):
            raise InputError(f"{self.out}: holds an interrupted run; --resume continues it, --overwrite starts over")
        self.resume = resume and interrupted
        self.overwrite = overwrite or self.resume
        self.keep = self.resume
        others = {p.name for p in self.out.iterdir() if p.name != WORK} if self.out.is_dir() else set()
        if others and not self.overwrite:
            raise InputError(f"{self.out}: is not empty; choose another --out, or give --overwrite")
        foreign = sorted(others - _files_of_result(self.out))
        if foreign and not self.resume:
            raise InputError(
                f"{self.out}: holds what secateur didn't make ({foreign[0]}), so it won't be overwritten"
            )
        self._created = _first_missing(self.out)

    @contextmanager
    def open(self) -> Iterator[Workspace]:
        """Makes the work area; removes it (and folders made for it) again if anything goes wrong.

        Once `keep` is set, what is finished stays for `--resume`.
        """
        try:
            lock = self._lock()
            self._clear(self.resume)
            self.final.mkdir(parents=True)
            self.blocks.mkdir(exist_ok=True)
        except OSError as error:
            self._discard()
            raise _as_error(error, self.out) from None
        with lock:
            try:
                yield self
            except OSError as error:
                self._discard()
                raise self._resumable(_as_error(error, self.out)) from error
            except ResourceError as error:
                self._discard()
                raise self._resumable(error) from error
            except BaseException:
                self._discard()
                raise
            shutil.rmtree(self.work, ignore_errors=True)

    def _lock(self) -> Lock:
        """Held while this process lives.

        Raises:
            InputError: another run is at work in it.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            return Lock(self.work / LOCK)
        except BlockingIOError:
            raise InputError(
                f"{self.out}: another run is at work in it; wait for it or choose another --out"
            ) from None

    def _clear(self, keep: bool) -> None:
        """Empties the work area; `keep`: but for what is finished."""
        for name in _files_of_result(self.final):
            if not (self.final / name).exists():  # it was delivered already, the others weren't: they go together
                (self.out / name).unlink(missing_ok=True)
        self.tidy(keep)

    def _resumable(self, error: Exception) -> Exception:
        if not self.keep or not isinstance(error, SecateurError):
            return error
        return type(error)(f"{error}; what is finished stays, the same command with --resume goes on from there")

    def _discard(self) -> None:
        if self.keep:
            with suppress(OSError):
                self._clear(True)
            return
        shutil.rmtree(self.work, ignore_errors=True)
        if self._created is not None and self.out.is_dir() and not any(self.out.iterdir()):
            shutil.rmtree(self._created, ignore_errors=True)

    @property
    def finished_bytes(self) -> int:
        """Size of the blocks that an interrupted run has finished."""
        return sum(file.stat().st_size for file in self.blocks.glob("*")) if self.resume else 0

    def deliver(self, last: str = MARK) -> None:
        """Moves everything from `final` into the output folder, `last` after all others.

        Raises:
            InputError: a file that isn't ours appeared there during the run and is in the way.
        """
        ours = _files_of_result(self.out)
        for path in self.final.iterdir():
            if path.name not in ours and (self.out / path.name).exists():
                raise InputError(
                    f"{self.out}: {path.name} appeared in it during the run; nothing was overwritten, move it away"
                )
        trash = self.work / "replaced"
        trash.mkdir(exist_ok=True)
        # The mark goes last and comes last: it tells which files are ours, whenever this is interrupted.
        for name in sorted(ours, key=lambda name: name == last):
            if (self.out / name).exists():
                (self.out / name).rename(trash / name)
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


def _as_error(error: OSError, out: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{out}: the disk is full; free some space or choose another --out")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"{out}: can't be written ({error.strerror}); choose another --out")
    return error


def block_file(folder: Path, index: int) -> Path:
    """Where the finished layer `index` (its place in the original model) is kept."""
    return folder / f"block-{index:05d}.safetensors"
