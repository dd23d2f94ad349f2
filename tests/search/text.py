"""Text that search's tests calibrate on."""

from __future__ import annotations

import json
from pathlib import Path


def write_text(folder: Path, documents: int = 200) -> Path:
    """Writes `text.jsonl` into a folder; its path."""
    file = folder / "text.jsonl"
    rows = (json.dumps({"text": f"the {i} that {i * i} " * 8}) for i in range(documents))
    file.write_text("\n".join(rows), encoding="utf-8")
    return file
