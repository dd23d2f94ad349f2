"""A run that is stopped anywhere goes on, and ends with the bytes of a run that was never stopped."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.calibration.walk import Block
from secateur.cli import app as cli
from secateur.config.recipe import make_recipe
from secateur.errors import InputError, ResourceError
from secateur.pipeline import one_shot
from secateur.pipeline import prune as pipeline
from secateur.workspace.folder import BLOCKS, JOURNAL, WORK, block_file
from tests.small import save_tiny

LAYERS = 4
SAME = ("model.safetensors", "config.json", "plan.json", "recipe.yaml", "tokenizer.json")
# What is asked for: structured cuts, single weights with the dense stream, and layers that are chosen first.
ASKED: dict[str, dict[str, Any]] = {
    "units": {"sites": "channel,query_head", "sparsity": 0.5},
    "weights": {"sparsity": 0.5, "quality": "balanced"},
    "tuned": {"sparsity": 0.5, "quality": "best", "reconstruct": 5},
    "tuned units": {"sites": "channel", "sparsity": 0.5, "reconstruct": 5, "memory": "1B"},
    "steps": {"sites": "channel,kv_group", "sparsity": 0.5, "steps": 2, "schedule": "linear"},
    "layers": {
        "sites": "layer,weight",
        "sparsity": {"layer": 0.25, "weight": 0.5},
        "method": "wanda,block_influence",
    },
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and some text."""
    folder = tmp_path_factory.mktemp("source")
    save_tiny(folder / "model", num_hidden_layers=LAYERS)
    rows = [{"text": f"the thing number {i} thought that {i * i} was that then, or {i % 7}"} for i in range(40)]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def values(source: Path, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "model": source / "model",
        "calibrate": source / "text.jsonl",
        "samples": 8,
        "length": 16,
        "evaluate": "none",
        "speed": False,
        **ASKED[name],
        **changes,
    }


def prune(source: Path, out: Path, name: str = "units", resume: bool = False, **changes: Any) -> dict[str, Any]:
    return secateur.prune(make_recipe(values(source, name, **changes)), out, resume=resume, quiet=True)


@pytest.fixture(scope="module")
def straight(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """name -> the output of a run that nothing stopped."""
    outs: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in outs:
            outs[name] = tmp_path_factory.mktemp("straight") / name
            prune(source, outs[name], name)
        return outs[name]

    return get


def stop_at(monkeypatch: pytest.MonkeyPatch, index: int, error: BaseException) -> None:
    """The cut of layer `index` raises, once."""
    cut_block = one_shot.cut_block

    def pruning_steps(block: Block, *rest: Any) -> Any:
        if block.index == index:
            monkeypatch.setattr(one_shot, "cut_block", cut_block)
            raise error
        return cut_block(block, *rest)

    monkeypatch.setattr(one_shot, "cut_block", pruning_steps)


@pytest.fixture
def stopped(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder whose run was stopped in layer 2."""
    stop_at(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prune(source, tmp_path / "out")
    return tmp_path / "out"


def same(a: Path, b: Path) -> None:
    for name in SAME:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert not (b / WORK).exists()


def stable(report: dict[str, Any]) -> dict[str, Any]:
    """What of a report doesn't depend on the clock."""
    return {key: report[key] for key in ("sites", "reconstruction", "sparsity", "parameters", "gate", "warnings")}


# ----------------------------------------------------------------------------- stopped anywhere


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("at", [1, 3])
def test_stopped_in_a_layer(
    name: str,
    at: int,
    source: Path,
    straight: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    stop_at(monkeypatch, at, KeyboardInterrupt())
    try:
        prune(source, out, name)
    except KeyboardInterrupt:
        assert [path.name for path in out.iterdir()] == [WORK]
        report = prune(source, out, name, resume=True)
        gate = json.loads((straight(name) / "report.json").read_text())["gate"]
        assert report["gate"]["max_logit_difference"] == gate["max_logit_difference"]
    else:  # this layer was dropped
        assert name == "layers"
    same(straight(name), out)
    before = json.loads((straight(name) / "report.json").read_text())
    after = json.loads((out / "report.json").read_text())
    for key in ("sites", "sparsity", "parameters", "warnings"):
        assert before[key] == after[key]


@pytest.mark.parametrize("where", ["write_checkpoint", "verify", "make_report", "write_outputs"])
def test_stopped_after_the_last_layer(
    where: str, source: Path, straight: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pruning_steps(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(one_shot if hasattr(one_shot, where) else pipeline, where, pruning_steps)
        with pytest.raises(KeyboardInterrupt):
            prune(source, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(one_shot, "cut_block", pruning_steps)  # nothing is left to cut
        prune(source, tmp_path / "out", resume=True)
    same(straight("units"), tmp_path / "out")


def test_stopped_again_and_again(
    source: Path, straight: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in (1, 1, 2, 3):
        stop_at(monkeypatch, index, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prune(source, tmp_path / "out", resume=True)
    prune(source, tmp_path / "out", resume=True)
    same(straight("units"), tmp_path / "out")


def test_stopped_before_the_first_layer_nothing_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prune(source, tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("memory", ["1B", "3KB", "1GB"])
def test_what_is_on_disk_is_the_same_run(
    memory: str, source: Path, straight: Callable[[str], Path], stopped: Path, tmp_path: Path
) -> None:
    prune(source, stopped, resume=True, memory=memory)
    same_but_recipe = [name for name in SAME if name != "recipe.yaml"]
    for name in same_but_recipe:
        assert (straight("units") / name).read_bytes() == (stopped / name).read_bytes(), name


def test_in_low_precision(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate compares in fp32, and what isn't cut isn't rounded."""
    report = prune(source, tmp_path / "straight", dtype="bfloat16")
    assert report["gate"]["max_logit_difference"] < 1e-5
    assert "the layers' weights are rounded to bfloat16, in which the run computes" in report["warnings"]
    stop_at(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prune(source, tmp_path / "out", dtype="bfloat16")
    prune(source, tmp_path / "out", dtype="bfloat16", resume=True)
    same(tmp_path / "straight", tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (source / "model", tmp_path / "out"))
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(before[name], after[name])


# ----------------------------------------------------------------------------- something is damaged


@pytest.mark.parametrize("damage", ["lost", "corrupted"])
def test_a_damaged_layer_is_done_again(
    damage: str, source: Path, straight: Callable[[str], Path], stopped: Path
) -> None:
    file = block_file(stopped / WORK / BLOCKS, 0)
    content = file.read_bytes()
    file.unlink() if damage == "lost" else file.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    report = prune(source, stopped, resume=True)
    same(straight("units"), stopped)
    told = [w for w in report["warnings"] if "layer 0 was pruned again" in w]
    assert len(told) == 1
    assert len(report["warnings"]) == 1


def test_a_torn_line_costs_one_layer(source: Path, straight: Callable[[str], Path], stopped: Path) -> None:
    journal = stopped / WORK / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-40])
    prune(source, stopped, resume=True)
    same(straight("units"), stopped)


def test_a_lost_journal_costs_all_layers(source: Path, straight: Callable[[str], Path], stopped: Path) -> None:
    (stopped / WORK / JOURNAL).unlink()
    prune(source, stopped, resume=True)
    same(straight("units"), stopped)


def test_resume_where_nothing_was_begun_begins(
    source: Path,
    straight: Callable[[str], Path],
    tmp_path: Path,
    fresh_gate: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("secateur.system.monitor.PART_SECONDS", 0.0)
    prune(source, tmp_path / "out", resume=True)
    same(straight("units"), tmp_path / "out")
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    told = {event["text"] for event in events if event["event"] == "step" and event["stage"] == "verify"}
    assert "loading weights" in told, "by the fresh process"


def test_a_full_disk_says_how_to_go_on(
    source: Path, straight: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 2, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(ResourceError, match=r"the disk is full; .* the same command with --resume goes on"):
        prune(source, tmp_path / "out")
    prune(source, tmp_path / "out", resume=True)
    same(straight("units"), tmp_path / "out")


# ----------------------------------------------------------------------------- something has changed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sparsity": 0.6}, r"sparsity was 0\.5, is 0\.6"),
        ({"seed": 1}, "seed was 0, is 1; calibration data has changed"),
        ({"samples": 4}, "samples was 8, is 4; calibration data has changed"),
        ({"refit": False}, "refit was true, is false"),
        ({"plan": True}, "plan has changed"),
    ],
)
def test_a_changed_run_is_refused(
    changes: dict[str, Any], said: str, source: Path, straight: Callable[[str], Path], stopped: Path
) -> None:
    asked = dict(changes)
    plan = secateur.Plan.read(straight("units") / "plan.json") if asked.pop("plan", False) else None
    recipe = make_recipe(values(source, "units", **asked))
    with pytest.raises(InputError, match=f"can't resume, the run differs: {said}; use --overwrite to start over"):
        secateur.prune(recipe, stopped, plan=plan, resume=True, quiet=True)
    prune(source, stopped, resume=True)
    same(straight("units"), stopped)


@pytest.mark.parametrize("what", ["data", "checkpoint"])
def test_changed_files_are_refused(
    what: str, source: Path, straight: Callable[[str], Path], stopped: Path, tmp_path: Path
) -> None:
    file = source / ("text.jsonl" if what == "data" else "model/model.safetensors")
    content = file.read_bytes()
    try:
        if what == "data":
            file.write_bytes(content.replace(b"thing", b"think"))
        else:
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InputError, match=f"{'calibration data' if what == 'data' else what} has changed"):
            prune(source, stopped, resume=True)
    finally:
        file.write_bytes(content)
    prune(source, stopped, resume=True)
    same(straight("units"), stopped)


def test_an_interrupted_run_is_not_overwritten_by_mistake(source: Path, stopped: Path) -> None:
    with pytest.raises(InputError, match="holds an interrupted run; --resume continues it"):
        prune(source, stopped)
    assert block_file(stopped / WORK / BLOCKS, 1).is_file()


# ----------------------------------------------------------------------------- the command line


def words(source: Path, out: Path, *more: str) -> list[str]:
    asked = {k: v for k, v in values(source, "units").items() if k not in ("model", "speed")}
    flags = [word for key, value in asked.items() for word in (f"--{key}", str(value))]
    return ["prune", str(source / "model"), *flags, "--no-speed", "--out", str(out), "--quiet", *more]


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_says_how_to_go_on(
    kind: signal.Signals,
    code: int,
    source: Path,
    straight: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Signal(BaseException):
        """Never raised: the signal interrupts before."""

    def send(block: Block, *rest: Any) -> Any:
        if block.index == at:
            os.kill(os.getpid(), kind)
            raise Signal
        return cut_block(block, *rest)

    cut_block, before = one_shot.cut_block, signal.getsignal(signal.SIGTERM)
    # A shell starts its background jobs with SIGINT ignored, and the tests may be one.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(one_shot, "cut_block", send)
    try:
        for layer, said in ((0, "nothing was written"), (2, "the same command with --resume goes on after layer 1")):
            at = layer
            with pytest.raises(SystemExit) as end:
                cli.main(words(source, tmp_path / "out"))
            assert end.value.code == code
            assert capsys.readouterr().err == f"error: stopped; {said}\n"
        at = -1
        with pytest.raises(SystemExit) as end:
            cli.main(words(source, tmp_path / "out", "--resume"))
        assert not end.value.code
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)
    same(straight("units"), tmp_path / "out")


KILL = """
import os, signal, sys
from secateur.cli import app as cli
from secateur.pipeline.store import Store
keep = Store.keep_block
def kills(store, layer, checkpoint, cuts):
    keep(store, layer, checkpoint, cuts)
    if cuts.index == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
Store.keep_block = kills
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_kill_9(source: Path, straight: Callable[[str], Path], tmp_path: Path) -> None:
    for at in (0, 2, 3):
        command = [sys.executable, "-c", KILL.format(at=at), *words(source, tmp_path / "out", "--resume")]
        assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
        assert (tmp_path / "out" / WORK / JOURNAL).is_file()
    command = [sys.executable, "-m", "secateur", *words(source, tmp_path / "out", "--resume")]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    same(straight("units"), tmp_path / "out")
