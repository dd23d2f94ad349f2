"""Folders of plain weights in the user's cache, each made once of something that isn't read layer by layer."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

from secateur.data.cache import cache_folder
from secateur.errors import InputError
from secateur.model.json_files import read_object

ORIGIN = "dequantised.json"  # says what such a folder was made of
ENDS = 1 << 20  # bytes of both ends that tell a file from others
LONGEST = 300


def made_once(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache; where it isn't there yet, `make` fills it, and it appears whole or not at all.

    Several processes that want the same wait for the one that was first.
    """
    home = cache_folder(kind)
    target = home / name
    if (target / "config.json").is_file():
        return target
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / f"{name}.lock"):
        if (target / "config.json").is_file():
            return target
        work = Path(tempfile.mkdtemp(dir=home))
        try:
            make(work)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def fingerprint(files: Iterable[Path], *more: object) -> str:
    """Sixteen characters for what files hold, by their sizes and both ends, and for whatever else decides."""
    total = hashlib.sha256(repr(more).encode())
    for file in files:
        size = file.stat().st_size
        total.update(str(size).encode())
        with file.open("rb") as handle:
            total.update(handle.read(ENDS))
            handle.seek(max(0, size - ENDS))
            total.update(handle.read())
    return total.hexdigest()[:16]


def origin_of(folder: Path) -> str | None:
    """What the weights of a folder were before they were dequantised, in a few words; None: nothing is known."""
    try:
        said = read_object(folder / ORIGIN).get("stored_as") if (folder / ORIGIN).is_file() else None
    except InputError:
        return None
    return said[:LONGEST] if isinstance(said, str) else None
