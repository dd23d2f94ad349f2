"""The output folder: nothing in it is touched until a run has succeeded, and nothing partial stays.

A run works in OUT/.secateur (its work area). At the end the finished files move into OUT by rename. A run
that fails on its input leaves OUT as it found it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from secateur.errors import InputError, ResourceError, SecateurError
from secateur.workspace.lock import Lock
from secateur.workspace.ownership import (
    JOURNAL,
    LOCK,
    MARK,
    OWNER,
    WORK,
    check_apart,
    contents,
    discard,
    in_the_way,
    is_regular,
    is_work_area,
    listed,
    move,
    remove_empty,
    result_files,
)

BLOCKS, EVENTS = "blocks", "events.jsonl"
TRAINING = "training"  # states of a recovery
UNTRAINED = "untrained.jsonl"  # sequences of its text that the recovery leaves for the report
PRUNED = "pruned"  # the checkpoint that a recovery began with
STEPS = "steps"  # of a gradual run, all but the last
REFUSED = "refused"  # a checkpoint that the round-trip gate refused
LEVELS, MADE = "levels", "made"  # of a search: every piece of the model, and the choice as it is pruned
# What an interrupted run leaves to the next one.
FINISHED = (BLOCKS, JOURNAL, EVENTS, TRAINING, STEPS, REFUSED, LEVELS, MADE)
REPLACED = "replaced"  # the earlier result, while a new one is delivered


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
            if path.name not in (LOCK, OWNER) and not (keep and path.name in FINISHED):
                discard(path)


class Workspace(Area):
    """An output folder and its work area.

    Args:
        out: the folder; made if missing.
        overwrite: an earlier result of Secateur in it, or an interrupted run, may be replaced.
        resume: an interrupted run in it goes on; where there's none, the run begins. None: such runs can't go on.
        inputs: folders that the run reads.

    Raises:
        InputError: the folder isn't empty, is a file, holds something that Secateur didn't make, or isn't apart from
            what the run reads.
    """

    def __init__(
        self, out: str | Path, overwrite: bool = False, resume: bool | None = None, inputs: Sequence[Path] = ()
    ) -> None:
        if not str(out).strip():
            raise InputError("--out is empty; give the name of a folder")
        self.out = Path(out)
        super().__init__(self.out / WORK)
        check_apart(self.out, inputs)
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out}: is a file; give a folder for --out")
        interrupted = self.work.exists() or self.work.is_symlink()
        if interrupted and not is_work_area(self.work):
            raise InputError(
                f"{self.work}: is no work area that secateur made, so it's left alone; "
                "move it away, or choose another --out"
            )
        others = contents(self.out)
        foreign = sorted(others - self._ours())
        if interrupted and not (resume or overwrite):
            raise InputError(f"{self.out}: holds an interrupted run; {_ways_on(resume is not None, foreign)}")
        self.resume = bool(resume) and interrupted
        self.overwrite = overwrite or self.resume
        self.keep = self.resume
        if others and not self.overwrite:
            also = ", or give --overwrite" if not foreign else ""
            raise InputError(f"{self.out}: is not empty; choose another --out{also}")
        if foreign and not self.resume:
            raise InputError(
                f"{self.out}: holds what secateur didn't make ({foreign[0]}), so it won't be overwritten; "
                "choose another --out"
            )
        self._created = _first_missing(self.out)

    def _ours(self) -> set[str]:
        """Files in the output folder that a run has written: the earlier one, or one that was stopped delivering."""
        return result_files(self.out) | set(self._delivered())

    def _delivered(self) -> list[str]:
        """Files that a delivery which isn't over has moved out of `final` already."""
        if not (self.work / REPLACED).is_dir():
            return []
        names = (name for name in listed(self.final) if not is_regular(self.final, name))
        return [name for name in names if is_regular(self.out, name)]

    @contextmanager
    def open(self) -> Iterator[Workspace]:
        """Makes the work area; removes it (and folders made for it) again if anything goes wrong.

        Once `keep` is set, what is finished stays for `--resume`.
        """
        try:
            self._claim()
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
            discard(self.work)

    def _claim(self) -> None:
        """The mark by which a later run knows the work area for ours, from its first moment on."""
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / OWNER).write_text("secateur\n", encoding="utf-8")

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
        self._put_back()
        self.tidy(keep)

    def _put_back(self) -> None:
        """Undoes a delivery that was stopped halfway: the output folder is as it was before.

        Every step is a rename and can be stopped itself: the new files go first, and come back to `final`, so that
        what is in the output folder without being in there is new; the earlier report comes first of the old ones,
        because it says which they are. A delivery whose report has arrived is over.
        """
        replaced = self.work / REPLACED
        for name in self._delivered():
            move(name, self.out, self.final)
        if not is_regular(self.final, MARK):
            return
        for name in sorted(contents(replaced), key=lambda name: name != MARK):
            if in_the_way(self.out, name):
                raise InputError(f"{self.out}: {name} is where the earlier result's file belongs; move it away")
            move(name, replaced, self.out)

    def _resumable(self, error: Exception) -> Exception:
        if not self.keep or not isinstance(error, SecateurError):
            return error
        return type(error)(f"{error}; what is finished stays, the same command with --resume goes on from there")

    def _discard(self) -> None:
        try:
            self._put_back()
        except (OSError, InputError):
            return  # the earlier result is in the work area, so that stays
        with suppress(OSError):
            if self.keep:
                self.tidy(True)
                return
            discard(self.work)
            if self._created is not None:
                remove_empty(self.out, self._created)

    @property
    def finished_bytes(self) -> int:
        """Size of the blocks that an interrupted run has finished."""
        return sum(file.stat().st_size for file in self.blocks.glob("*")) if self.resume else 0

    def deliver(self, last: str = MARK) -> None:
        """Moves everything from `final` into the output folder, `last` after all others.

        Raises:
            InputError: a file that isn't ours appeared there during the run and is in the way.
        """
        ours, new = result_files(self.out), contents(self.final)
        for name in sorted(new - ours):
            if in_the_way(self.out, name):
                raise InputError(
                    f"{self.out}: {name} appeared in it during the run; nothing was overwritten, move it away"
                )
        replaced = self.work / REPLACED
        replaced.mkdir(exist_ok=True)
        # The mark goes last and comes last: it tells which files are ours, whenever this is interrupted.
        for name in sorted(ours, key=lambda name: name == last):
            move(name, self.out, replaced)
        for name in sorted(new, key=lambda name: name == last):
            move(name, self.final, self.out)


def _ways_on(resumable: bool, foreign: list[str]) -> str:
    """What can be done about an interrupted run; `foreign`: what isn't ours and keeps --overwrite from working."""
    if foreign:
        other = f"choose another --out, it also holds what secateur didn't make ({foreign[0]})"
        return f"--resume continues it; to start over, {other}" if resumable else other
    return "--resume continues it, --overwrite starts over" if resumable else "--overwrite starts over"


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
