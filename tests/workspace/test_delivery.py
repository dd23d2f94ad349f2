"""The report is delivered when all else is there: it tells which files are ours, whenever this is stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur.workspace.folder import MARK, Workspace


def test_the_report_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, names, arrived = tmp_path / "out", ["config.json", "zeros.json", MARK], []
    honest = Path.rename

    def watched(file: Path, target: Path) -> Path:
        if target.parent == out:
            arrived.append(target.name)
        return honest(file, target)

    monkeypatch.setattr(Path, "rename", watched)
    with Workspace(out).open() as workspace:
        for name in names:
            (workspace.final / name).write_text(json.dumps({"secateur": "0", "files": names}))
        workspace.deliver()
    assert sorted(arrived) == sorted(names)
    assert arrived[-1] == MARK
