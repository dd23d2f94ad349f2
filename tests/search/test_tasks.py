"""Candidates measured as tasks: the same figures and the same model as in this process, also on a real Ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.cli import app as cli
from secateur.config.searching import SearchSettings, make_search
from secateur.errors import InputError, ResourceError
from secateur.report.schema.search import SearchReport
from secateur.search import search as room
from secateur.search import tasks, trial
from secateur.search.search import search
from secateur.search.space import Piece
from secateur.system.on_ray import Lost, OnRay, map_tasks
from tests.search.text import write_text
from tests.small import save_tiny


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> SearchSettings:
    folder = tmp_path_factory.mktemp("tasks")
    save_tiny(folder / "model", num_hidden_layers=3, context=64)
    write_text(folder)
    told = {"model": str(folder / "model"), "calibrate": str(folder / "text.jsonl"), "samples": 8, "length": 32}
    told |= {"speed": False, "general_text": 0, "trials": 8, "explain": False, "device": "cpu", "quality": "fast"}
    return make_search({**told, "want": "params=0.8x", "evaluate": "none"})


@pytest.fixture(scope="module")
def here(settings: SearchSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchReport, Path]:
    """The search in this process."""
    out = tmp_path_factory.mktemp("here") / "out"
    return search(settings, out, quiet=True), out


def same(found: SearchReport, out: Path, here: tuple[SearchReport, Path]) -> None:
    for key in ("pieces", "candidates", "wishes"):
        assert found[key] == here[0][key]  # type: ignore[literal-required]
    for name in ("plan.json", "model.safetensors"):
        assert (out / name).read_bytes() == (here[1] / name).read_bytes()


def test_tasks_measure_what_this_process_does(
    settings: SearchSettings, here: tuple[SearchReport, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function that workers run, without Ray: all it is given, and all it gives, goes through JSON."""
    monkeypatch.setattr(trial, "FEW", 64)  # two of eight sequences
    monkeypatch.setattr(trial, "ENOUGH", 1)
    by_few = search(settings, tmp_path / "here", quiet=True)
    assert by_few["pieces"] != here[0]["pieces"]
    sizes = []

    def mapped(function: Any, items: Sequence[Any], cluster: OnRay) -> Iterator[tuple[int, Any]]:
        assert cluster == OnRay(cpus=torch.get_num_threads())
        sizes.append(len(items))
        plain = map_tasks(lambda item: json.loads(json.dumps(function(json.loads(json.dumps(item))))), items)
        yield from reversed(list(plain))  # as it comes, in whatever order

    monkeypatch.setattr(tasks, "map_tasks", mapped)
    monkeypatch.setattr(room, "connected", lambda cluster: nullcontext())
    found = search(settings, tmp_path / "out", quiet=True, on="ray")
    same(found, tmp_path / "out", (by_few, tmp_path / "here"))
    assert sizes[0] == sum(piece["measured"] for piece in found["pieces"])
    assert "untouched model" not in [stage["name"] for stage in found["stages"]]

    measure = tasks.as_tasks(settings, tmp_path / "nowhere", OnRay(cpus=torch.get_num_threads()))
    with pytest.raises(InputError, match=r"nowhere: isn't there on .*; give an --out that every machine sees"):
        list(measure([(Piece(0, "ffn", 1),)]))
    monkeypatch.setattr(tasks, "map_tasks", lambda *_: (pair for pair in [(0, Lost("OutOfMemoryError: no"))]))
    with pytest.raises(ResourceError, match="lost on Ray each time it was begun: OutOfMemoryError: no"):
        list(measure([(Piece(0, "ffn", 1),)]))


def test_without_ray_its_command_is_named_and_nothing_is_written(
    settings: SearchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray isn't installed here; install it with: pip install .*\[ray\]"):
        search(settings, tmp_path / "out", quiet=True, on="ray")
    assert not (tmp_path / "out").exists()


def test_flags_of_a_cluster_go_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["search", "embedded", "--want", "params=0.8x", "--ray-address", "auto", "--out", "out"])
    assert ended.value.code == 2
    assert "--ray-address goes with --on ray" in capsys.readouterr().err


def test_on_a_real_ray_the_result_is_the_same(
    settings: SearchSettings, here: tuple[SearchReport, Path], tmp_path: Path
) -> None:
    """Workers with as many threads as this process has, so that sums are added up in the same order."""
    ray = pytest.importorskip("ray", reason="the extra 'ray' isn't installed")
    found = search(settings, tmp_path / "out", quiet=True, on="ray")
    same(found, tmp_path / "out", here)
    assert not ray.is_initialized()
