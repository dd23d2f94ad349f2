"""The same sweep on a real Ray: two workers on this machine, one of which is killed in the middle of its trial."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.config.sweep import make_sweep
from secateur.errors import InputError
from secateur.sweeps import sweep as room
from secateur.sweeps.trial import run_trial
from secateur.system.on_ray import Lost, OnRay, map_tasks
from tests.sweeps.small import figures, furnish, kill_in_the_middle

ROOT = str(Path(__file__).parents[2])
MISSING = "the extra 'ray' isn't installed"


def test_without_ray_items_are_taken_one_by_one() -> None:
    taken: list[int] = []

    def double(item: int) -> int:
        taken.append(item)
        return 2 * item

    doubled = map_tasks(double, [3, 1, 2])
    assert next(doubled) == (0, 6)
    assert taken == [3]
    assert list(doubled) == [(1, 2), (2, 4)]


def test_a_ray_that_is_not_there_is_told_of_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    chosen = make_sweep({"base": {"model": "embedded"}, "trials": [{"sparsity": 0.5}]})
    with pytest.raises(InputError, match=r"Ray isn't installed here; install it with: pip install .*\[ray\]"):
        secateur.sweep(chosen, tmp_path / "out", on="ray", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_task_whose_process_always_dies_is_lost_and_the_others_are_not() -> None:
    """On a cluster that is made for the tasks and ends with them."""
    ray = pytest.importorskip("ray", reason=MISSING)

    def double(item: int) -> int:
        return 2 * item if item else os._exit(1)

    found = dict(map_tasks(double, [3, 0, 2], OnRay(retries=1)))
    lost = found.pop(1)
    assert found == {0: 6, 2: 4}
    assert isinstance(lost, Lost)
    assert lost.why.startswith("WorkerCrashedError")
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Any]:
    """A cluster of two processors, which `map_tasks` finds and leaves running."""
    ray = pytest.importorskip("ray", reason=MISSING)

    def as_tests_are() -> None:
        """The round-trip gate in the worker itself, as in every test: see tests/model/gate.py."""
        sys.path.insert(0, ROOT)
        from secateur.model import round_trip
        from tests.model.gate import run_here

        round_trip.run = run_here

    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONWARNINGS", "ignore")
        hook = {"worker_process_setup_hook": as_tests_are}
        ray.init(address="local", num_cpus=2, runtime_env=hook, **quiet)
        yield ray
        ray.shutdown()


def test_a_worker_that_is_killed_costs_nothing_but_time(two_workers: Any, tmp_path: Path) -> None:
    base = furnish(tmp_path)
    chosen = make_sweep(
        {
            "base": base,
            "grid": {"sparsity": [0.25, 0.5]},
            "trials": [{"name": "long", "length": 1000, "sparsity": 0.5}],
        }
    )
    out = tmp_path / "on-ray"
    thread = threading.Thread(target=kill_in_the_middle, args=(out, "sparsity-0.5"))
    thread.start()
    found = secateur.sweep(chosen, out, on="ray", quiet=True)
    thread.join()
    assert two_workers.is_initialized()
    assert [(trial["name"], trial["state"], trial["attempts"]) for trial in found["trials"]] == [
        ("sparsity-0.25", "done", 1),
        ("sparsity-0.5", "done", 2),
        ("long", "failed", 1),
    ]
    assert "more than the model's context" in str(found["trials"][2]["error"])
    lines = (out / "sparsity-0.5" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [e["resumed"] for e in map(json.loads, lines) if e["event"] == "run"] == [False, True]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "in_own_process", run_trial)
        without = secateur.sweep(chosen, tmp_path / "without", quiet=True)
    assert figures(found) == figures(without)
    for name in ("sparsity-0.25", "sparsity-0.5"):
        one, other = (tmp_path / folder / name / "model.safetensors" for folder in ("on-ray", "without"))
        assert one.read_bytes() == other.read_bytes()
