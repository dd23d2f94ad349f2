"""Tables in pages of docs/: each page marks the place where a benchmark writes what it has measured."""

from __future__ import annotations

import sys
from pathlib import Path


def between_marks(page: Path, begin: str, end: str, text: str) -> None:
    """Replaces what a page has between two marks."""
    head, first, rest = page.read_text(encoding="utf-8").partition(begin)
    _, last, tail = rest.partition(end)
    if not (first and last):
        sys.exit(f"{page} has no place for the tables: it lacks {begin} or {end}")
    page.write_text(f"{head}{first}\n\n{text}\n\n{last}{tail}", encoding="utf-8")
