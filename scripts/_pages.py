"""Pages and tables that scripts make: written, or only compared with what is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def keep(wanted: Mapping[Path, str], remedy: str) -> None:
    """Writes files; told `--check` it changes none, and exits with 1 if one isn't as wanted.

    Args:
        remedy: what is wrong then, and what mends it.
    """
    if "--check" not in sys.argv[1:]:
        for file, now in wanted.items():
            file.parent.mkdir(exist_ok=True)
            file.write_text(now, encoding="utf-8")
        return
    stale = [file.name for file, now in wanted.items() if not file.is_file() or file.read_text("utf-8") != now]
    sys.exit(f"{', '.join(stale)}: {remedy}" if stale else 0)
