from __future__ import annotations

from pathlib import Path

import pytest

from secateur.workspace import lock
from secateur.workspace.lock import Lock


def test_one_at_a_time(tmp_path: Path) -> None:
    with Lock(tmp_path / "lock"), pytest.raises(BlockingIOError):
        Lock(tmp_path / "lock")
    Lock(tmp_path / "lock").__exit__()


def test_where_there_are_no_locks_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> bool:
        raise OSError("no locks here")

    monkeypatch.setattr(lock, "lock_descriptor", missing)
    with Lock(tmp_path / "lock"), Lock(tmp_path / "lock"):
        pass


def test_nothing_is_left_of_an_emptied_area_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.sys, "platform", "win32")
    (tmp_path / "work").mkdir()
    with Lock(tmp_path / "work" / "lock"):
        (tmp_path / "work" / "blocks").mkdir()
    assert (tmp_path / "work" / "lock").exists(), "there is something to go on from"
    (tmp_path / "work" / "blocks").rmdir()
    with Lock(tmp_path / "work" / "lock"):
        pass
    assert not (tmp_path / "work").exists()
