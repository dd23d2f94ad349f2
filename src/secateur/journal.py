"""The journal of a run: what it was told, and every block it has finished, so that it can go on after a kill.

A line is appended (and flushed to the disk) when a block's file is complete. A line that was cut short by a
kill is no line. A block counts as finished if its line is there and its file has the hash that the line
names; any other block is simply done again, which gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secateur.cut.units import UnitCut
from secateur.cut.weights import WeightCut
from secateur.errors import InputError
from secateur.model.save import block_file
from secateur.model.sites import Cut, Site

FILE = "journal.jsonl"


class Journal:
    """An append-only file of JSON lines in the work area.

    Args:
        work: the work area.
        told: everything that decides the result: recipe, data hash, checkpoint digest, plan, version.
    """

    def __init__(self, work: Path, blocks: Path, told: dict[str, Any]) -> None:
        self._file = work / FILE
        self._blocks = blocks
        self._told = json.loads(json.dumps(told))
        self._lines: list[dict[str, Any]] = []

    def start(self) -> None:
        """Begins a new journal."""
        self._lines = []
        self._file.unlink(missing_ok=True)
        self._append({"told": self._told})

    def resume(self) -> None:
        """Reads the journal of the interrupted run.

        Raises:
            InputError: there is none, or that run was told something else; names what differs.
        """
        if not self._file.is_file():
            raise InputError(f"{self._file.parent.parent}: holds no interrupted run; leave --resume out")
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                self._lines.append(json.loads(line))
            except ValueError:
                break  # cut short by the kill
        before = self._lines[0].get("told") if self._lines else None
        if before is None:
            raise InputError(f"{self._file.parent.parent}: the interrupted run had not begun; leave --resume out")
        changed = [
            f"{key} was {_short(before.get(key))}, is {_short(self._told.get(key))}"
            for key in {**before, **self._told}
            if before.get(key) != self._told.get(key)
        ]
        if changed:
            raise InputError(f"can't resume, the run differs: {'; '.join(changed)}; use --overwrite to start over")
        # What follows a torn line is written on a fresh one.
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        _write_whole(self._file, text)

    def _append(self, record: dict[str, Any]) -> None:
        self._lines.append(record)
        with self._file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def note(self, key: str, value: Any) -> None:
        """Remembers a decision, such as which layers stay."""
        self._append({key: value})

    def noted(self, key: str) -> Any:
        """A remembered decision, or None."""
        return next((line[key] for line in self._lines if key in line), None)

    def block(self, index: int, record: dict[str, Any]) -> None:
        """A block is finished: its file is complete on disk."""
        self._append({"block": index, "sha256": _digest(block_file(self._blocks, index)), **record})

    def finished(self, index: int) -> dict[str, Any] | None:
        """The record of a block that is finished and whose file is intact, or None."""
        for line in self._lines:
            if line.get("block") == index:
                file = block_file(self._blocks, index)
                return line if file.is_file() and _digest(file) == line["sha256"] else None
        return None


def record_cuts(units: list[UnitCut], weights: list[WeightCut]) -> dict[str, Any]:
    """Cuts of one block as JSON."""
    return {"units": [asdict(cut) for cut in units], "weights": [asdict(cut) for cut in weights]}


def read_cuts(record: dict[str, Any]) -> tuple[list[UnitCut], list[WeightCut]]:
    """Back from JSON."""
    units = [UnitCut(**{**c, "site": _site(c["site"]), "keep": tuple(c["keep"])}) for c in record["units"]]
    weights = [WeightCut(**{**c, "shape": tuple(c["shape"])}) for c in record["weights"]]
    return units, weights


def _site(fields: dict[str, Any]) -> Site:
    return Site(**{**fields, "cuts": tuple(Cut(**cut) for cut in fields["cuts"])})


def _digest(file: Path) -> str:
    total = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 22):
            total.update(chunk)
    return total.hexdigest()


def _write_whole(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(file)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
