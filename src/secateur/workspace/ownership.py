"""What in an output folder is ours: the one place that decides what may be moved or removed.

A report and a work area may have been written by anyone, so a name in them counts only if it leads to a regular
file in the folder itself, by no link. What isn't known to be ours is left alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from secateur.errors import InputError

WORK = ".secateur"
LOCK, JOURNAL = "lock", "journal.jsonl"
OWNER = "owner"  # is in every work area that a run has made
MARK = "report.json"  # every finished run writes it last
EXPORT = "export"  # what a recipe's last stage has written
FOLDERS = ("additional_chat_templates", "runs", EXPORT)  # the only folders that a result may hold, and
MODULE = re.compile(r"\d{1,2}_[A-Za-z]\w{0,60}")  # those of sentence-transformers: 1_Pooling
LINE = 1 << 24  # bytes of a journal's first line, at most


def discard(path: Path) -> None:
    """Removes a file or a folder with all it holds, as far as it can be; of a link, the link.

    Raises:
        ValueError: it lies outside every work area.
    """
    if WORK not in (path.parent.resolve() / path.name).parts:
        raise ValueError(f"{path}: lies in no work area")
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def remove_empty(folder: Path, top: Path) -> None:
    """Removes a folder and those above it up to `top`, as far as they are empty."""
    with suppress(OSError):  # the first that isn't empty ends it
        for empty in (folder, *folder.parents):
            empty.rmdir()
            if empty == top:
                return


def is_regular(folder: Path, name: str) -> bool:
    """Whether `name` is a regular file below the folder, and neither it nor a folder on the way to it is a link."""
    path = folder
    *above, last = PurePosixPath(name).parts
    for part in above:
        path /= part
        if path.is_symlink() or not path.is_dir():
            return False
    try:
        return stat.S_ISREG((path / last).lstat().st_mode)
    except (OSError, ValueError):
        return False


def is_module_folder(name: str) -> bool:
    """Whether a folder is called as sentence-transformers calls those of a model's parts."""
    return MODULE.fullmatch(name) is not None


def may_hold(name: str) -> bool:
    """Whether a result may hold a folder of this name."""
    return name in FOLDERS or is_module_folder(name)


def listed(folder: Path) -> set[str]:
    """What the report in a folder says that its run has written; empty if there's none of ours."""
    if not is_regular(folder, MARK):
        return set()
    try:
        report = json.loads((folder / MARK).read_text(encoding="utf-8"))
        names = report["files"] if "secateur" in report else []
        return {MARK, *filter(_plain, names)} if isinstance(names, list) and names else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _plain(name: object) -> bool:
    """Whether a name can only lead to a file in the folder itself, or in one that results have."""
    if not isinstance(name, str) or "\\" in name or "\0" in name:
        return False
    parts = name.split("/")
    return not {"", ".", "..", WORK} & set(parts) and (len(parts) == 1 or may_hold(parts[0]))


def result_files(folder: Path) -> set[str]:
    """Names of the files of a finished run that lie in a folder."""
    return {name for name in listed(folder) if is_regular(folder, name)}


def contents(folder: Path) -> set[str]:
    """Everything in a folder but the work area: names, and those of files in the folders that a result may hold."""
    found: set[str] = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        if may_hold(path.name) and path.is_dir() and not path.is_symlink():
            for place, folders, files in os.walk(path):
                links = [name for name in folders if (Path(place) / name).is_symlink()]
                found |= {(Path(place) / name).relative_to(folder).as_posix() for name in (*files, *links)}
        elif path.name != WORK:
            found.add(path.name)
    return found


def names_for_report(folder: Path) -> list[str]:
    """`files` of a report: what `--overwrite` may replace later, and nothing that others put beside it."""
    return sorted({MARK, *contents(folder)})


def move(name: str, source: Path, target: Path) -> None:
    """Moves a file from one folder to the same place in another; a folder that it leaves empty goes."""
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).rename(target / name)
    if (source / name).parent != source:
        remove_empty((source / name).parent, source / PurePosixPath(name).parts[0])


def in_the_way(folder: Path, name: str) -> bool:
    """Whether something is where a file would be moved to, or where a folder on the way to it would be."""
    *above, last = PurePosixPath(name).parts
    place = folder
    for part in above:
        place /= part
        if os.path.lexists(place) and (place.is_symlink() or not place.is_dir()):
            return True
    return os.path.lexists(place / last)


def may_start_over(work: Path) -> bool:
    """Whether --overwrite will be accepted in the output folder of a work area, or of a part of one."""
    area = next((path for path in (work, *work.parents) if path.name == WORK), None)
    return area is None or not contents(area.parent) - result_files(area.parent)


def is_work_area(work: Path) -> bool:
    """Whether a folder is a work area that a run has made: by its mark, or by the journal of an earlier version."""
    if work.is_symlink() or not work.is_dir():
        return False
    entries = list(work.iterdir())
    if any(entry.is_symlink() for entry in entries):
        return False
    return {entry.name for entry in entries} <= {LOCK} or is_regular(work, OWNER) or _has_journal(work)


def _has_journal(work: Path) -> bool:
    if not is_regular(work, JOURNAL):
        return False
    try:
        with (work / JOURNAL).open("rb") as handle:
            first = json.loads(handle.readline(LINE))
        return isinstance(first, dict) and "told" in first
    except (OSError, ValueError, RecursionError):
        return False


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Refuses an output folder that is one of the folders a run reads, lies in one, or holds one.

    Raises:
        InputError: in one line.
    """
    for model in inputs:
        if not model.is_dir():
            continue
        if _same(out, model):
            raise InputError(f"{out}: is the model itself; choose another --out")
        if any(_same(above, model) for above in out.resolve().parents):
            raise InputError(f"{out}: lies in the model's folder {model}; choose another --out")
        read = [model.resolve(), *(file.resolve() for file in model.iterdir() if file.is_symlink())]
        if out.exists() and any(_same(out, above) for path in read for above in path.parents):
            raise InputError(f"{out}: holds files of the model {model}; choose another --out")


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one folder: through links, and where the case of letters doesn't matter."""
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()
