"""What every test may use."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from secateur.model import round_trip
from secateur.system import child
from tests.model.gate import run_here

# Where whole runs and fresh processes are: begun first, so that no worker is left alone with one of them at the end.
LONG = ("recovery", "pipeline", "docs", "system", "allocation", "reconstruct", "scripts", "runtime")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        room = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONG.index(room) if room in LONG else len(LONG)

    items.sort(key=place)


@pytest.fixture(scope="session")
def whole() -> Path:
    """Real models and data that lie beside the repository, or a skip where they don't."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip("no folder 'shared' with models and data beside the repository")
    return folder


@pytest.fixture(scope="session")
def shared(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a twentieth of the stories to calibrate on: to tokenise them all takes longer than most runs."""
    folder = tmp_path_factory.mktemp("beside") / "shared"
    stories = folder / "data" / "tinystories"
    stories.mkdir(parents=True)
    (folder / "models").symlink_to(whole / "models", target_is_directory=True)
    for source in (whole / "data").iterdir():
        if source.name != stories.name:
            (folder / "data" / source.name).symlink_to(source, target_is_directory=True)
    (stories / "eval.jsonl").symlink_to(whole / "data" / "tinystories" / "eval.jsonl")
    with (whole / "data" / "tinystories" / "calibrate.jsonl").open(encoding="utf-8") as every:
        (stories / "calibrate.jsonl").write_text("".join(itertools.islice(every, 250)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session", autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, the round-trip gate in this process (a fresh one takes seconds), and a cache of their own."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(round_trip, "run", run_here)
        yield


@pytest.fixture
def fresh_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The round-trip gate as users have it, in an interpreter that knows nothing of this one."""
    monkeypatch.setattr(round_trip, "run", child.run)
