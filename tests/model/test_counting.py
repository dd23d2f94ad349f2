"""Entries that aren't zero are counted without a whole file staying mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from secateur.model import counting
from secateur.model.checkpoint import Checkpoint
from tests.model import tiny


def test_few_tensors_of_a_file_are_read_before_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save("llama", tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    reads: list[int] = []

    def opened(*told: Any, **more: Any) -> Any:
        reads.append(0)
        return Counted(safe_open(*told, **more))

    class Counted:
        def __init__(self, handle: Any) -> None:
            self.handle = handle

        def __enter__(self) -> Counted:
            self.handle.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.handle.__exit__(*error)

        def get_tensor(self, name: str) -> torch.Tensor:
            reads[-1] += 1
            return self.handle.get_tensor(name)

    monkeypatch.setattr(counting, "safe_open", opened)
    monkeypatch.setattr(counting, "AT_ONCE", 4)
    found = counting.count_nonzero(Checkpoint.open(tmp_path / "model"))
    assert found == sum(int((value != 0).sum()) for value in stored.values())
    assert sum(reads) == len(stored) > max(reads) == 4
