"""What every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from secateur.model import round_trip
from secateur.pipeline import one_shot


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and data that lie beside the repository, or a skip where they don't."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip("no folder 'shared' with models and data beside the repository")
    return folder


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """One thread, and the round-trip gate in this process: a fresh one takes seconds."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_shot, "verify", round_trip.check)
        yield
