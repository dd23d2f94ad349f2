"""A training in a process of our own uses the memory of one step for the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.recovery.trainer import Recoverer
from secateur.system import malloc
from tests.small import TRAINING_LENGTH as LENGTH


def test_freed_memory_stays_while_steps_are_made(
    source: Path, pruned: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    during: list[tuple[int, int]] = []
    honest = Recoverer.training_step

    def step(*arguments: Any, **more: Any) -> Any:
        during.append(told[-1])
        return honest(*arguments, **more)

    monkeypatch.setattr(malloc, "_ours", True)
    monkeypatch.setattr(malloc, "_set", lambda *option: told.append(option))
    monkeypatch.setattr(Recoverer, "training_step", step)
    values = {"data": str(source / "text.jsonl"), "steps": 2, "batch": 4, "length": LENGTH, "learning_rate": 3e-3}
    settings = secateur.make_recovery(values)
    secateur.recover(pruned["free"], tmp_path / "out", settings, evaluate="none", speed=False, quiet=True)
    assert set(during) == {(malloc.MMAP_MAX, 0)}
    assert told == [(malloc.MMAP_MAX, 0), (malloc.MMAP_MAX, malloc.MOST)]
