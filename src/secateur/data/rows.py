"""Rows of a data file, whatever its format: one mapping after the other, each with the place it stands in.

FILE.jsonl                    one JSON object a line
FILE.jsonl.gz, FILE.jsonl.zst the same, compressed
FILE.json                     a list of JSON objects
FILE.csv                      the names of the columns, then a row a line; every value is a string
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from secateur.errors import InputError, install

MOST_BYTES = 2**31  # of a file, and of what a compressed one holds
FORMATS = (".jsonl", ".json", ".csv", ".jsonl.gz", ".jsonl.zst")
PIECE = 2**20

Row = tuple[str, Mapping[str, Any]]  # where it stands, such as "line 3", and what it holds


class Read(NamedTuple):
    """The rows of a file, parsed as they are taken, and the SHA-256 of the file's bytes."""

    rows: Iterator[Row]
    sha256: str


def format_of(path: Path) -> str | None:
    """The ending that says how a file is read; None for one of no known format."""
    name = path.name.lower()
    return next((ending for ending in sorted(FORMATS, key=len, reverse=True) if name.endswith(ending)), None)


def read_rows(spec: str, path: Path) -> Read:
    """Reads a file whole; `spec` is its name in errors.

    Raises:
        InputError: an unknown format, too large, empty, not UTF-8, or, while the rows are taken, malformed.
    """
    kind = format_of(path)
    if kind is None:
        raise InputError(f"{spec} is no data file that can be read; give a {', '.join(FORMATS)} file")
    try:
        check_size(spec, path)
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{spec} can't be read: {error.strerror or error}") from None
    text = utf8(spec, _unpacked(spec, raw, kind))
    parse = {".json": _listed, ".csv": _columns}.get(kind, _lines)
    return Read(parse(spec, text), hashlib.sha256(raw).hexdigest())


def check_size(spec: str, path: Path) -> None:
    """Refuses a file that is empty, or too large to be read whole."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise InputError(f"{spec} has {size / 1e9:.1f} GB, and text is read whole; give a part of at most 2 GB")
    if size == 0:
        raise InputError(f"{spec} is empty; give a file with at least one document")


def utf8(spec: str, raw: bytes) -> str:
    """Bytes as text, without a byte order mark, which some editors put first."""
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = f"byte {error.start} (line {line}) is 0x{raw[error.start]:02x}"
        raise InputError(f"{spec} is not UTF-8: {byte}; convert the file to UTF-8") from None


def _unpacked(spec: str, raw: bytes, kind: str) -> bytes:
    if kind.endswith(".gz"):
        return _limited(spec, gzip.GzipFile(fileobj=io.BytesIO(raw)), (OSError, EOFError, zlib.error))
    if kind.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise InputError(f"{spec}: reading .zst needs zstandard; run {install('data')}") from None
        stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw), read_across_frames=True)
        return _limited(spec, stream, (zstandard.ZstdError, MemoryError))
    return raw


def _limited(spec: str, stream: Any, failures: tuple[type[Exception], ...]) -> bytes:
    """All that a compressed file holds; a few bytes can hold more than memory does."""
    parts, size = [], 0
    try:
        while part := stream.read(PIECE):
            size += len(part)
            if size > MOST_BYTES:
                raise InputError(f"{spec} holds more than 2 GB, and text is read whole; give a part of it")
            parts.append(part)
    except failures as error:
        raise InputError(f"{spec} is not a whole compressed file ({error}); fetch it again") from None
    return b"".join(parts)


def _lines(spec: str, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a string may hold U+2028
        if line.strip():
            yield f"line {number}", _object(spec, number, line)


def _object(spec: str, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        reason = str(error).replace(": line 1 ", ", ")
        raise InputError(f"{spec}: line {number} is not JSON ({reason}); write one object a line") from None
    except RecursionError:
        raise InputError(f'{spec}: line {number} is nested too deeply; write {{"text": "..."}}') from None
    if not isinstance(row, dict):
        raise InputError(f'{spec}: line {number} is not a JSON object; write {{"text": "..."}}')
    return row


def _listed(spec: str, text: str) -> Iterator[Row]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InputError(f"{spec} is not JSON ({error}); write a list of objects") from None
    except RecursionError:
        raise InputError(f"{spec} is nested too deeply; write a list of objects") from None
    if not isinstance(rows, list):
        raise InputError(f"{spec} is not a list; write [{{...}}, {{...}}], or one object a line in a .jsonl file")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{spec}: entry {number} is not a JSON object")
        yield f"entry {number}", row


def _columns(spec: str, text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = list(reader.fieldnames or ())
        if len(set(names)) < len(names):
            raise InputError(f"{spec}: a column is there twice; its columns: {', '.join(map(repr, names))}")
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise InputError(f"{spec}: row {number} doesn't have as many values as the header has names")
            yield f"row {number}", row
    except csv.Error as error:
        raise InputError(f"{spec}: line {reader.line_num} is not CSV ({error}); put quotes around commas") from None
