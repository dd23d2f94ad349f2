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
    file = cache_folder(name) / f"{key}.json"
    found = _pairs(file)
    if found is not None:
        return found
    made = make()
    if keep:
        _write(file, json.dumps(made).encode())
    return made


def kept_bytes(name: str, key: str, make: Callable[[], bytes]) -> bytes:
    """Bytes from the cache, or made and put there; see `kept_pairs`."""
    file = cache_folder(name) / f"{key}.bin"
    found = _read(file)
    if found is None:
        found = make()
        _write(file, found)
    return found


def _pairs(file: Path) -> list[tuple[str, str]] | None:
    """The pairs in a file, as JSON. None if it isn't there or isn't that."""
    rest = _read(file)
    if rest is None:
        return None
    try:
        pairs = json.loads(rest)
    except ValueError:
        return None
    whole = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    )
    return [(first, second) for first, second in pairs] if whole else None


def _read(file: Path) -> bytes | None:
    """What a file holds below a line with the hash of it. None if it isn't there or isn't whole."""
    try:
        digest, _, rest = file.read_bytes().partition(b"\n")
    except OSError:
        return None
    return rest if hashlib.sha256(rest).hexdigest().encode() == digest else None


def _write(file: Path, rest: bytes) -> None:
    """Whole or not at all; not at all where nothing can be written."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".making-")
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
            os.replace(temporary, file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
