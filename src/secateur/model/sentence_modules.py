"""Folders of sentence-transformers: a body, and what makes one vector for a text of its hidden states.

`modules.json` lists the parts in order, each with the folder that it lies in: the body in the folder itself, the
others (`1_Pooling`, `2_Dense`, ...) below it. They belong to the model as its tokenizer does, and stay as they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from secateur.errors import InputError
from secateur.model.json_files import read_object
from secateur.workspace.ownership import is_module_folder

MODULES = "modules.json"
MOST_BYTES = 2**16
MOST_MODULES = 16
MEAN = "mean"
# Keys of a pooling's config.json, and what they mean; with several it's the first that counts here.
WAYS = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": MEAN,
    "pooling_mode_mean_sqrt_len_tokens": MEAN,
}
NAMED_WAYS = {"cls": "first", "lasttoken": "last", "max": "max", "mean": MEAN}


def module_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders of the parts behind the body, as modules.json lists them; empty without such a file."""
    rows = _rows(folder / MODULES)
    names = [row.get("path") for row in rows if isinstance(row, dict)]
    return tuple(name for name in names if isinstance(name, str) and is_module_folder(name))


def body_folder(folder: Path) -> str | None:
    """Where a folder without a model of its own keeps the body: `0_Transformer`, in older ones."""
    rows = _rows(folder / MODULES)
    path = rows[0].get("path") if rows and isinstance(rows[0], dict) else None
    return path if isinstance(path, str) and is_module_folder(path) else None


def pooling_of(folder: Path) -> str:
    """How hidden states become one vector: `first`, `last`, `max` or `mean`, which it is where nothing says."""
    for name in module_folders(folder):
        file = folder / name / "config.json"
        if "pooling" not in name.lower() or not file.is_file():
            continue
        told = read_object(file, most_bytes=MOST_BYTES)
        mode = told.get("pooling_mode")
        if isinstance(mode, str) and mode in NAMED_WAYS:
            return NAMED_WAYS[mode]
        return next((way for key, way in WAYS.items() if told.get(key) is True), MEAN)
    return MEAN


def _rows(file: Path) -> list[Any]:
    """What a modules.json lists; empty where there is no such file.

    Raises:
        InputError: there is one, and it isn't a short list.
    """
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size <= MOST_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or len(found) > MOST_MODULES:
        raise InputError(f"{file}: is not the short list of modules that sentence-transformers writes")
    return found
