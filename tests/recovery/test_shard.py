"""Two ranks with the training spread over them do what one does: losses, zeros, stops; and each holds half."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.errors import InputError
from secateur.recovery import sequences, shard
from tests.model import tiny
from tests.small import TRAINING_LENGTH as LENGTH
from tests.system.launch import torchrun

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")

HELD_OUT = 5  # an odd number: one rank has a sequence less
# What is told beside `shard`, what else it is run with, and the pruned model.
JOBS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "distill": ("free", {"how": "distill", "micro_batch": 1}, {}),
    "full": ("2:4", {"how": "full", "weight_decay": 0.1, "learning_rate": None, "checkpointing": True}, {}),
    "uneven, int8": ("channel", {"how": "distill", "teacher_dtype": "int8"}, {}),
    "experts": ("experts", {"how": "full"}, {}),
    "bf16": ("free", {"how": "full"}, {"dtype": "bfloat16"}),
    "stopped": ("free", {"how": "distill", "micro_batch": 1}, {"stop": 4}),
    "fp16": ("free", {"how": "full"}, {"dtype": "float16"}),
}


class Done(NamedTuple):
    """Of a job: the report and the weights of two ranks and of one, the pruned weights."""

    two: dict[str, Any]
    weights: dict[str, torch.Tensor]
    one: dict[str, Any]
    pruned: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A mixture of experts, half of its weights zero, and token ids to train it on."""
    folder = tmp_path_factory.mktemp("experts")
    tiny.save("mixtral", folder / "model")
    rows = [{"input_ids": [3 + (i + j * (1 + i % 2)) % 17 for j in range(LENGTH)]} for i in range(200)]
    (folder / "ids.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {"model": str(folder / "model"), "calibrate": str(folder / "ids.jsonl"), "samples": 8, "length": LENGTH}
    values |= {"evaluate": "none", "speed": False, "method": "magnitude", "refit": False, "sparsity": 0.5}
    secateur.prune(secateur.make_recipe(values), folder / "pruned", quiet=True)
    return folder / "pruned", folder / "ids.jsonl"


@pytest.fixture(scope="module")
def jobs(source: Path, pruned: dict[str, Path], experts: tuple[Path, Path]) -> dict[str, dict[str, Any]]:
    """What each job is told."""
    found = {}
    for name, (model, changes, how) in JOBS.items():
        folder, data = experts if model == "experts" else (pruned[model], source / "text.jsonl")
        told = {"data": str(data), "steps": 6, "batch": 4, "length": LENGTH, "learning_rate": 3e-3}
        told |= {"evaluate_every": 3, **changes}
        found[name] = {"model": str(folder), "told": told, "dtype": "float32", **how}
    return found


@pytest.fixture(scope="module")
def sharded(jobs: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all jobs have come to, in one launch."""
    folder = tmp_path_factory.mktemp("sharded")
    asked = [{**job, "told": {**job["told"], "shard": True}, "out": str(folder / n)} for n, job in jobs.items()]
    (folder / "jobs.json").write_text(json.dumps({"held_out": HELD_OUT, "jobs": asked}))
    ended = torchrun([str(Path(__file__).with_name("sharded.py")), str(folder / "jobs.json")])
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def done(jobs: dict[str, dict[str, Any]], sharded: Path) -> Callable[[str], Done]:
    """The results of a job, which one process does too when it is asked for."""

    @cache
    def get(name: str) -> Done:
        job = jobs[name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sequences, "HELD_OUT", HELD_OUT)
            told, how = secateur.make_recovery(job["told"]), {"dtype": job["dtype"], "quiet": True}
            one = secateur.recover(job["model"], sharded / "one" / name, told, evaluate="none", speed=False, **how)
        two = json.loads((sharded / name / "report.json").read_text())
        after, before = (load_file(folder / "model.safetensors") for folder in (sharded / name, Path(job["model"])))
        return Done(two["recovery"], after, one["recovery"], before)

    return get


def seen(folder: Path, name: str) -> list[dict[str, Any]]:
    """What each rank has noted of a job."""
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]


def test_no_thread_of_the_group_outlives_it(sharded: Path) -> None:
    """An interpreter that ends while they run aborts now and then."""
    for rank in range(2):
        within, after = json.loads((sharded / f"threads-{rank}.json").read_text())
        if not within:
            pytest.skip("this system doesn't name threads")
        assert any("gloo" in name for name in within)
        assert not any("gloo" in name for name in after)


def same_curve(mine: Done, within: float) -> None:
    assert [point.keys() for point in mine.one["curve"]] == [point.keys() for point in mine.two["curve"]]
    for one, two in zip(mine.one["curve"], mine.two["curve"], strict=True):
        for key, value in one.items():
            assert two[key] == pytest.approx(value, rel=within), (key, one["step"])


def same_zeros(mine: Done) -> None:
    assert mine.two["best_step"] > 0
    assert mine.two["zeros_kept"] == mine.one["zeros_kept"]
    assert mine.weights.keys() == mine.pruned.keys()
    for name, before in mine.pruned.items():
        if "proj" in name or "experts" in name:
            assert torch.equal(before == 0, mine.weights[name] == 0), name
        assert not torch.equal(before, mine.weights[name]), name


@pytest.mark.parametrize("name", ["distill", "full", "uneven, int8", "experts"])
def test_two_ranks_do_what_one_does(name: str, done: Callable[[str], Done]) -> None:
    found = done(name)
    same_curve(found, 1e-3)
    same_zeros(found)
    tried = [[row["held_out"] for row in side["rates_tried"]] for side in (found.one, found.two)]
    assert len(tried[0]) == (3 if name == "full" else 0)
    assert tried[1] == pytest.approx(tried[0], rel=1e-3)


def test_each_rank_holds_half(sharded: Path) -> None:
    for name, models in (("distill", 2), ("uneven, int8", 1)):  # the teacher too, unless it is small anyway
        for noted in seen(sharded, name):
            assert len(noted["bytes"]) == models
            for own, whole in noted["bytes"]:
                assert 0.48 * whole < own < 0.52 * whole
            trained = noted["bytes"][-1][0]
            assert trained < noted["optimizer"] < 2 * trained  # one moment of matrices, two of the rest


def test_half_precision_is_of_the_products_alone(done: Callable[[str], Done]) -> None:
    found = done("bf16")
    same_zeros(found)
    same_curve(found, 0.02)
    assert found.two["held_out_after"] < found.two["held_out_before"]


def test_a_stopped_run_goes_on_to_the_same_bytes(sharded: Path) -> None:
    assert seen(sharded, "stopped")[0]["kept"] == ["optimizer-0.safetensors", "optimizer-1.safetensors"]
    assert json.loads((sharded / "stopped" / "report.json").read_text())["recovery"]["steps"] == 6
    straight, stopped = ((sharded / name / "model.safetensors").read_bytes() for name in ("distill", "stopped"))
    assert straight == stopped


def test_slices_come_back_whole(sharded: Path) -> None:
    found = load_file(sharded / "slices.safetensors")
    assert {tuple(tensor.shape) for tensor in found.values()} == {(1, 5), (2, 5), (3, 5), (1,), (2,), (3,)}
    for tensor in found.values():
        assert torch.equal(tensor, torch.arange(tensor.numel()).view(tensor.shape) + 0.5)


def test_fp16_is_not_sharded(sharded: Path) -> None:
    assert all("use --dtype bfloat16" in noted["error"] for noted in seen(sharded, "fp16"))
    assert not (sharded / "fp16").exists()


@pytest.mark.parametrize(("how", "said"), [("lora", "adapters need little memory"), ("full", "launch with torchrun")])
def test_what_cannot_be_sharded(how: str, said: str, source: Path, pruned: dict[str, Path], tmp_path: Path) -> None:
    told = {"data": str(source / "text.jsonl"), "steps": 4, "batch": 4, "length": LENGTH, "shard": True, "how": how}
    with pytest.raises(InputError, match=said):
        secateur.recover(pruned["free"], tmp_path / "out", secateur.make_recovery(told))
    assert not (tmp_path / "out").exists()


def test_another_number_of_processes_cannot_go_on(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / f"optimizer-{rank}.safetensors").touch()
    with pytest.raises(InputError, match="over 2 processes, here are 1"):
        shard.load_optimizer(tmp_path, torch.nn.Linear(1, 1), None, None)
