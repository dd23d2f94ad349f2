"""The journal of a run: what it was told, and every block it has finished, so that it can go on after a kill.

A line is appended (and flushed to the disk) when a block's file is complete. A line that was cut short by a
kill is no line. A block counts as finished if its line is there and its file has the hash that the line
names; any other block is simply done again, which gives the same bytes.

The first line is what the run was told. The others are decisions, `{"layers": ...}`, and blocks, `{"block": 3,
"sha256": ..., "units": ..., "weights": ..., "widths": ..., "added": ...}`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from secateur.errors import InputError
from secateur.workspace.folder import BLOCKS, JOURNAL, STEPS, block_file
from secateur.workspace.ownership import may_start_over

Line = dict[str, Any]  # a line: whatever was noted, under its key


class Found(TypedDict):
    """What an interrupted run has found for its target."""

    sparsity: float | dict[str, float]
    sites: tuple[str, ...]


class Journal:
    """An append-only file of JSON lines in the work area.

    Args:
        work: the work area.
        fingerprint: everything that decides the result: recipe, data hash, checkpoint digest, plan, version.
    """

    def __init__(self, work: Path, fingerprint: Mapping[str, object]) -> None:
        self._file = work / JOURNAL
        self._blocks = work / BLOCKS
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._lines: list[Line] = []

    def begin(self, resume: bool) -> bool:
        """Goes on with the journal of an interrupted run, if it shall and there's one; whether it did."""
        if resume and self.resume():
            return True
        self.start()
        return False

    def start(self) -> None:
        """Begins a new journal."""
        self._lines = []
        self._file.unlink(missing_ok=True)
        self._append({"told": self._fingerprint})

    def resume(self) -> bool:
        """Goes on with the journal of the interrupted run; False if that hadn't begun one: then `start`.

        Raises:
            InputError: that run was told something else; names what differs.
        """
        self._lines = read_lines(self._file)
        if not self._lines:
            return False
        before = self._lines[0]["told"]
        changed = [
            _difference(key, before.get(key), self._fingerprint.get(key))
            for key in {**before, **self._fingerprint}
            if before.get(key) != self._fingerprint.get(key)
        ]
        if changed:
            way = "use --overwrite to start over" if may_start_over(self._file.parent) else "choose another --out"
            raise InputError(f"can't resume, the run differs: {'; '.join(changed)}; {way}")
        # Without the torn line, so that the next one is written on a fresh line.
        _write_whole(self._file, "".join(json.dumps(line) + "\n" for line in self._lines))
        return True

    def _append(self, record: Line) -> None:
        self._lines.append(record)
        with self._file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def note(self, key: str, value: Any) -> None:
        """Remembers a decision, such as which layers stay."""
        self._append({key: value})

    def noted(self, key: str) -> Any:
        """A remembered decision, the last where there were several; or None."""
        return next((line[key] for line in reversed(self._lines) if key in line), None)

    def every(self, key: str) -> list[Any]:
        """All that was noted under a key, in order."""
        return [line[key] for line in self._lines if key in line]

    def block(self, index: int, record: Mapping[str, object]) -> None:
        """A block is finished: its file is complete on disk."""
        self._append({"block": index, "sha256": _digest(block_file(self._blocks, index)), **record})

    def finished(self, index: int) -> Line | None:
        """The record of a block that is finished, or None."""
        return next((line for line in reversed(self._lines) if line.get("block") == index), None)

    def intact(self, record: Line) -> bool:
        """Whether the file of a finished block is there, whole and unchanged."""
        file = block_file(self._blocks, record["block"])
        return file.is_file() and _digest(file) == record["sha256"]


def read_lines(file: Path) -> list[Line]:
    """The whole lines of a journal, up to one that was cut short; empty if it says not even what was told."""
    lines: list[Line] = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or (not lines and "told" not in line):
            break
        lines.append(line)
    return lines


def found_before(work: Path) -> Found | None:
    """Sparsity and sites that an interrupted run has found for its target; None if there's none."""
    lines = read_lines(work / JOURNAL)
    return {"sparsity": lines[0]["told"]["sparsity"], "sites": tuple(lines[0]["told"]["sites"])} if lines else None


def last_finished(work: Path) -> str | None:
    """What an interrupted run has finished last, such as "layer 3" or "layer 3 of step 2"; None: nothing."""
    steps = sorted((int(p.name) for p in (work / STEPS).glob("[0-9]*")), reverse=True)
    places = [(work, ""), *((work / STEPS / str(number), f" of step {number}") for number in steps)]
    for folder, where in places:
        blocks = [line["block"] for line in read_lines(folder / JOURNAL) if "block" in line]
        if blocks:
            return f"layer {max(blocks)}{where}"
    return None


def _digest(file: Path) -> str:
    total = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 22):
            total.update(chunk)
    return total.hexdigest()


def _write_whole(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.rename(file)


def _difference(key: str, before: Any, now: Any) -> str:
    was, is_ = json.dumps(before), json.dumps(now)
    if max(len(was), len(is_)) > 60:  # a hash, a plan
        return f"{key} has changed"
    return f"{key} was {was}, is {is_}"
