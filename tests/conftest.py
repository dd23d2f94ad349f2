"""What every test may use."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from secateur.model import round_trip
from tests.model.gate import InThisProcess

# Whole runs and fresh processes: begun first, so that no worker is left alone with one at the end.
LONG = (
    "recovery/test_shard.py",
    "pipeline/test_resume.py",
    "recovery/test_recover.py",
    "docs/test_docs.py",
    "system/test_distributed.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        return LONG.index(file) if file in LONG else len(LONG)

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and data that lie beside the repository, or a skip where they don't."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip("no folder 'shared' with models and data beside the repository")
    return folder


@pytest.fixture(scope="session", autouse=True)
def quick() -> Iterator[None]:
    """One thread, and the round-trip gate in this process: a fresh one takes seconds."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_trip, "subprocess", InThisProcess)
        yield


@pytest.fixture
def fresh_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The round-trip gate as users have it, in an interpreter that knows nothing of this one."""
    monkeypatch.setattr(round_trip, "subprocess", subprocess)
