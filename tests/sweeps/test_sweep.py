"""A sweep runs what isn't done, survives what goes wrong, and says what has become of each trial."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.cli import app as cli
from secateur.config.sweep import make_sweep
from secateur.errors import InputError
from secateur.report.schema.sweep import TrialOrder, TrialOutcome
from secateur.sweeps import sweep as room
from secateur.sweeps.trial import in_own_process, run_trial
from tests.cases import case
from tests.sweeps.small import figures, furnish, kill_in_the_middle

Run = Callable[[TrialOrder], TrialOutcome]
TOO_LONG = {"name": "long", "length": 1000, "sparsity": 0.5}  # more than the model's context, which the run finds out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return furnish(tmp_path_factory.mktemp("swept"))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trials are run in this process, and their names noted: an interpreter takes longer than most of them."""
    names: list[str] = []

    def run(order: TrialOrder) -> TrialOutcome:
        names.append(order["name"])
        return run_trial(order)

    monkeypatch.setattr(room, "in_own_process", run)
    return names


def states(found: Any) -> list[tuple[str, str]]:
    return [(trial["name"], trial["state"]) for trial in found["trials"]]


def test_each_trial_is_a_result_and_only_what_isnt_done_is_run(
    base: dict[str, Any], ran: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    grid = {"sparsity": [0.25, 0.5]}
    found = secateur.sweep(make_sweep({"base": base, "grid": grid, "trials": [TOO_LONG]}), out, quiet=True)
    assert states(found) == [("sparsity-0.25", "done"), ("sparsity-0.5", "done"), ("long", "failed")]
    assert "1000 is more than the model's context; use --length 512 or less" in found["trials"][2]["error"]
    assert json.loads((out / "sweep.json").read_text(encoding="utf-8")) == found
    assert "sparsity-0.25" in (out / "compare.html").read_text(encoding="utf-8")
    assert {path.name for path in out.iterdir()} == {"sparsity-0.25", "sparsity-0.5", "sweep.json", "compare.html"}
    alone = secateur.prune(secateur.make_recipe({**base, "sparsity": 0.5}), tmp_path / "alone", quiet=True)
    swept = next(r for r in found["comparison"]["results"] if r["name"] == "sparsity-0.5")
    assert alone["parameters"]["after"] == swept["values"]["parameters"]
    one, other = (folder / "model.safetensors" for folder in (tmp_path / "alone", out / "sparsity-0.5"))
    assert one.read_bytes() == other.read_bytes()

    ran.clear()
    more = make_sweep({"base": base, "grid": {"sparsity": [0.75, 0.5, 0.25]}})
    again = secateur.sweep(more, out, quiet=True)
    assert ran == ["sparsity-0.75"]
    assert [(t["name"], t["ran"], t["attempts"]) for t in again["trials"]] == [
        ("sparsity-0.75", True, 1),
        ("sparsity-0.5", False, 0),
        ("sparsity-0.25", False, 0),
    ]

    ran.clear()
    changed = make_sweep({"base": {**base, "seed": 7}, "grid": {"sparsity": [0.25]}})
    with pytest.raises(
        InputError, match=r"sparsity-0.25: holds a run of other settings \(seed was 0, is 7\); give --over"
    ):
        secateur.sweep(changed, out, quiet=True)
    assert ran == []
    anew = secateur.sweep(changed, out, overwrite=True, quiet=True)
    assert states(anew) == [("sparsity-0.25", "done")]
    report = json.loads((out / "sparsity-0.25" / "report.json").read_text(encoding="utf-8"))
    assert report["recipe"]["seed"] == 7

    only_fails = secateur.sweep(make_sweep({"base": base, "trials": [TOO_LONG]}), out, quiet=True)
    assert (states(only_fails), "comparison" in only_fails) == ([("long", "failed")], False)
    assert states(secateur.sweep(changed, out, quiet=True)) == [("sparsity-0.25", "done")]  # its page is still known


def test_a_sweep_that_was_stopped_goes_on(
    base: dict[str, Any], ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = make_sweep({"base": base, "grid": {"sparsity": [0.25, 0.5]}})
    out, run = tmp_path / "out", room.in_own_process

    def stop(order: TrialOrder) -> TrialOutcome:
        if ran:
            raise KeyboardInterrupt
        return run(order)

    with monkeypatch.context() as patch:
        patch.setattr(room, "in_own_process", stop)
        with pytest.raises(KeyboardInterrupt):
            secateur.sweep(chosen, out, quiet=True)
    assert not (out / "sweep.json").exists()
    assert ran == ["sparsity-0.25"]
    stopped = secateur.sweep(chosen, out, quiet=True)
    assert ran == ["sparsity-0.25", "sparsity-0.5"]
    assert figures(stopped) == figures(secateur.sweep(chosen, tmp_path / "whole", quiet=True))


def test_a_process_that_is_killed_is_a_failed_trial_that_goes_on(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh process, as users have it, killed when its first block is finished."""
    chosen, out = make_sweep({"base": base, "trials": [{"name": "one", "sparsity": 0.5}]}), tmp_path / "out"
    thread = threading.Thread(target=kill_in_the_middle, args=(out, "one"))
    thread.start()
    killed = secateur.sweep(chosen, out, quiet=True)
    thread.join()
    assert states(killed) == [("one", "failed")]
    assert "its process was killed" in killed["trials"][0]["error"]
    assert "comparison" not in killed
    monkeypatch.setattr(room, "in_own_process", run_trial)
    assert states(secateur.sweep(chosen, out, quiet=True)) == [("one", "done")]
    events = [json.loads(line) for line in (out / "one" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["resumed"] for event in events if event["event"] == "run"] == [False, True]


def test_a_process_ends_with_the_sweep_that_began_it() -> None:
    """A sweep that is killed leaves no trial behind that holds its folder: the other end of stdin is closed."""
    from secateur.sweeps import trial

    ended: list[int] = []
    reading, writing = os.pipe()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(reading) as stdin:
        patch.setattr(trial.sys, "stdin", stdin)
        patch.setattr(trial.os, "_exit", ended.append)
        thread = threading.Thread(target=trial._end_with_sweep)
        thread.start()
        assert ended == []
        os.close(writing)
        thread.join(10)
    assert ended == [1]


def test_folders_that_hold_something_else_are_left_alone(
    base: dict[str, Any], ran: list[str], tmp_path: Path
) -> None:
    chosen = make_sweep({"base": base, "trials": [{"name": "one", "sparsity": 0.5}]})
    out = tmp_path / "out"
    area, file = out / ".secateur", out / "one" / "notes.txt"

    def with_file(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    with_file(file, "mine")
    with case("someone's folder"), pytest.raises(InputError, match="is not empty and holds no sweep"):
        secateur.sweep(chosen, out, quiet=True)
    with_file(area / "owner", "secateur\n")
    with case("an interrupted prune"), pytest.raises(InputError, match="is not empty and holds no sweep"):
        secateur.sweep(chosen, out, quiet=True)
    with_file(area / "owner", "secateur sweep\n")
    with case("a trial's folder"), pytest.raises(InputError, match="one: holds no trial"):
        secateur.sweep(chosen, out, overwrite=True, quiet=True)
    with_file(out / "compare.html", "mine")
    with case("a page"), pytest.raises(InputError, match=r"compare.html in it is none that secateur made"):
        secateur.sweep(chosen, out, overwrite=True, quiet=True)
    with case("the model"), pytest.raises(InputError, match=r"lies in the model's folder"):
        secateur.sweep(chosen, Path(base["model"]) / "inside", quiet=True)
    assert ran == []
    assert file.read_text(encoding="utf-8") == "mine"


def test_the_command_lists_runs_and_tells_by_its_exit_code(
    base: dict[str, Any], ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(json.dumps({"base": base, "grid": {"sparsity": [0.5]}, "trials": [TOO_LONG]}), encoding="utf-8")

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["sweep", str(file), "--out", str(out), *words])
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, said.out, said.err

    code, said, _ = call("--dry-run")
    assert (code, ran, out.exists()) == (0, [], False)
    assert "2 of 2 trials would be run" in said
    code, said, progress = call()
    assert code == 1
    assert ran == ["sparsity-0.5", "long"]
    assert "trial 1/2" in progress
    assert "failed: long: --length 1000 is more than the model's context" in said
    assert "1 of 2 trials are done, 1 failed" in said
    assert [(trial["name"], trial["state"]) for trial in json.loads(call("--dry-run", "--json")[1])] == [
        ("sparsity-0.5", "done"),
        ("long", "new"),
    ]
    file.write_text(json.dumps({"base": base, "grid": {"sparsity": [0.5]}}), encoding="utf-8")
    code, said, _ = call("--json")
    assert (code, json.loads(said)["trials"][0]["ran"]) == (0, False)
    code, _, error = call("--retries", "1")
    assert (code, error.count("\n")) == (2, 1)
    assert "go with --on ray" in error


def test_two_sweeps_never_share_a_folder(base: dict[str, Any], ran: list[str], tmp_path: Path) -> None:
    chosen = make_sweep({"base": base, "trials": [{"name": "one", "sparsity": 0.5}]})
    out = tmp_path / "out"
    with (
        room.open_area(out),
        pytest.raises(InputError, match="another sweep is at work in it"),
    ):
        secateur.sweep(chosen, out, quiet=True)
    assert ran == []


def test_a_trial_on_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    order: TrialOrder = {
        "name": "one",
        "recipe": "",
        "out": str(tmp_path / "elsewhere" / "one"),
        "overwrite": False,
        "threads": 1,
        "trusted": False,
        "cwd": str(tmp_path),
        "secateur": secateur.__version__,
    }
    assert "give an --out that every machine sees" in str(run_trial(order)["error"])
    with room.open_area(tmp_path / "out"):
        old = {**order, "out": str(tmp_path / "out" / "one"), "secateur": "0.0.1"}
        assert "the sweep is of 0.0.1" in str(run_trial(old)["error"])  # type: ignore[arg-type]


def test_the_way_users_have_it_is_a_fresh_process() -> None:
    assert room.in_own_process is in_own_process
