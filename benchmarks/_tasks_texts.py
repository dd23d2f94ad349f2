"""Text that `tasks.py` calibrates and trains on: of the web, and for a distillation half of something else."""

from __future__ import annotations

import itertools
import json
import lzma
from pathlib import Path
from typing import Any

from _tasks_tables import TASKS

DOCUMENTS, DOCUMENT = 1500, 8000  # of the mixed text: how many, and characters of each at most


def general_text(work: Path, shared: Path) -> Path:
    """Web text, every second document; of the others some are for evaluating."""
    file = work / "general.jsonl"
    if not file.is_file():
        lines = (shared / "data" / "web" / "c4.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[::2]), encoding="utf-8")
        (work / "held_out.jsonl").write_text("".join(lines[1::2][:60]), encoding="utf-8")
    return file


def training_text(general: Path, work: Path, shared: Path) -> str:
    """The other half books, documentation, textbooks, web and stories."""
    file = work / "mixed.jsonl"
    if not file.is_file():
        with lzma.open(shared / "data" / "pretrain" / "train.jsonl.xz", "rt", encoding="utf-8") as lines:
            rows = (row for row in map(json.loads, lines) if row["domain"] != "code")
            write(file, [row["text"][:DOCUMENT] for row in itertools.islice(rows, DOCUMENTS)])
    return f"{general}:0.5,{file}:0.5"


def in_use_text(general: Path, work: Path, shared: Path) -> str:
    """The other half the even questions of each task with their right answers."""
    file, texts = work / "answered.jsonl", list[str]()
    for name in TASKS:
        lines = (shared / "data" / "tasks" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        texts += [answered(json.loads(line)) for line in lines[::2]]
    write(file, texts)
    return f"{general}:0.5,{file}:0.5"


def answered(row: dict[str, Any]) -> str:
    """A row of a task with what is right."""
    if "query" in row:
        return f"{row['query']} {row['choices'][row['gold']]}"
    context = row["context_options"][row["gold"]] if "context_options" in row else row["context"]
    return f"{context} {row['continuation']}"


def write(file: Path, texts: list[str]) -> None:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
