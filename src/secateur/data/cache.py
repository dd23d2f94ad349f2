"""The user's cache: what was made once from things that rarely change, kept by a key of all that it was made from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Where things of one sort are kept; it may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "secateur" / name


def kept_pairs(
    name: str, key: str, make: Callable[[], list[tuple[str, str]]], keep: bool = True
) -> list[tuple[str, str]]:
    """Pairs of texts from the cache, or made and put there.

    A file that isn't whole is made anew. Where nothing can be written, nothing is kept.

    Args:
        name: of the sort.
        key: a hash of everything that decides what is made.
        keep: whether what is made now is put there.
    """
    folder = cache_folder(name)
    file = folder / f"{key}.json"
    found = _read(file)
    if found is not None:
        return found
    made = make()
    if not keep:
        return made
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _write(file, made)
    return made


def _read(file: Path) -> list[tuple[str, str]] | None:
    """The pairs in a file: a line with the hash of the rest, then JSON. None if it isn't there or isn't that."""
    try:
        digest, _, rest = file.read_bytes().partition(b"\n")
        if hashlib.sha256(rest).hexdigest().encode() != digest:
            return None
        pairs = json.loads(rest)
    except (OSError, ValueError):
        return None
    whole = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    )
    return [(first, second) for first, second in pairs] if whole else None


def _write(file: Path, pairs: list[tuple[str, str]]) -> None:
    """Whole or not at all."""
    rest = json.dumps(pairs).encode()
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".making-")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
