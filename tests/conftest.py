"""What every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and data that lie beside the repository, or a skip where they don't."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip("no folder 'shared' with models and data beside the repository")
    return folder
