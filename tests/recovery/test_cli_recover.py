"""`secateur recover` on the command line: mistakes are one line, stops are clean, results are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from secateur.cli import app as cli
from secateur.recovery import train
from secateur.recovery.trainer import Recoverer
from secateur.workspace.folder import WORK
from tests.small import TRAINING_LENGTH as LENGTH


class Ended(NamedTuple):
    code: int
    out: str
    error: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def words(source: Path, pruned: dict[str, Path], tmp_path: Path) -> list[object]:
    told = ["--how", "full", "--data", source / "text.jsonl", "--steps", 6, "--batch", 2, "--length", LENGTH]
    told += ["--learning-rate", 3e-3, "--evaluate-every", 2, "--no-speed", "--quiet"]
    return ["recover", pruned["free"], *told, "--out", tmp_path / "out"]


def test_it_shows_what_was_won_back(run: Callable[..., Ended], words: list[object], tmp_path: Path) -> None:
    ended = run(*words)
    assert ended.code == 0, ended.error
    assert "pruned" in ended.out
    assert "recovered" in ended.out
    assert "zeros of 21 matrices are still zeros" in " ".join(ended.out.split())
    again = json.loads((tmp_path / "out" / "report.json").read_text())["command"].split()[1:-2]
    repeated = run(*again, "--quiet", "--no-speed", "--out", tmp_path / "again")
    assert repeated.code == 0, repeated.error
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert one == two


def test_several_sources(run: Callable[..., Ended], words: list[object], source: Path, tmp_path: Path) -> None:
    file = source / "text.jsonl"
    other = tmp_path / "other.jsonl"
    other.write_bytes(file.read_bytes())
    at = words.index("--data") + 1
    words[at] = f"{file}:3,{other}:1"
    ended = run(*words)
    assert ended.code == 0, ended.error
    assert json.loads((tmp_path / "out" / "report.json").read_text())["recovery"]["steps"] == 6
    for wrong, said in (("3,no.jsonl:1", "'no.jsonl' does not exist"), ("0", "give a number above 0")):
        words[at] = f"{file}:{wrong}"
        ended = run(*words)
        assert (ended.code, ended.error.count("\n")) == (2, 1)
        assert said in ended.error


def test_ctrl_c_keeps_the_best_state(run: Callable[..., Ended], words: list[object], tmp_path: Path) -> None:
    honest = Recoverer.training_step

    def stopped(trainer: Recoverer, *arguments: Any, **more: Any) -> Any:
        if trainer.args.max_steps > train.MEASURED and trainer.state.global_step == 5:
            raise KeyboardInterrupt
        return honest(trainer, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recoverer, "training_step", stopped)
        ended = run(*words)
    assert ended.code == 130
    assert ended.error.count("\n") == 1
    assert "best state so far is that of step 4" in ended.error
    assert [path.name for path in (tmp_path / "out").iterdir()] == [WORK]
    assert run(*words).code == 2  # holds an interrupted run
    ended = run(*words, "--resume", "--json")
    assert ended.code == 0, ended.error
    assert json.loads(ended.out)["recovery"]["steps"] == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--how", "distil"], "how = 'distil'"),
        (["--track", "nobody"], "not installed"),
        (["--threads", 0], "too small"),
        (["--loss", "kl"], "unknown"),
    ],
)
def test_a_mistake_is_one_line(
    changes: list[object], said: str, run: Callable[..., Ended], words: list[object], tmp_path: Path
) -> None:
    ended = run(*words, *changes)
    assert (ended.code, ended.error.count("\n")) == (2, 1)
    assert said in ended.error
    assert not (tmp_path / "out").exists()


def test_accelerates_own_sharding_is_refused(
    run: Callable[..., Ended], words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "give --shard" in run(*words).error


def test_a_dry_run_prints_the_forecast(run: Callable[..., Ended], words: list[object], tmp_path: Path) -> None:
    ended = run(*words[:-2], "--dry-run")
    assert ended.code == 0, ended.error
    assert "FLOPs" in ended.out
    assert list(tmp_path.iterdir()) == []
