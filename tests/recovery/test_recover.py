"""Whole recoveries of real pruned folders: what is kept, what is gained, how they stop and go on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.errors import InputError
from secateur.numerics.patterns import Pattern
from secateur.recovery import session, train
from secateur.recovery.trainer import Recoverer
from secateur.workspace.folder import TRAINING, WORK
from tests.small import TRAINING_LENGTH as LENGTH


@pytest.fixture
def recover(source: Path, pruned: dict[str, Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def call(name: str, out: str = "out", **values: Any) -> dict[str, Any]:
        how = {key: values.pop(key) for key in ("resume", "finish", "evaluate", "dry_run") if key in values}
        how.setdefault("evaluate", "none")
        told = {"data": str(source / "text.jsonl"), "steps": 8, "batch": 4, "length": LENGTH, "learning_rate": 3e-3}
        settings = secateur.make_recovery({**told, **values})
        return secateur.recover(pruned[name], tmp_path / out, settings, speed=False, quiet=True, **how)

    return call


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("how", ["full", "distill", "lora"])
@pytest.mark.parametrize("name", ["free", "2:4"])
def test_zeros_stay_zeros(
    name: str, how: str, recover: Callable[..., dict[str, Any]], pruned: dict[str, Path], tmp_path: Path
) -> None:
    report = recover(name, how=how)
    section = report["recovery"]
    assert section["held_out_after"] < section["held_out_before"]
    before, after = weights(pruned[name]), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = 0
    for key in before:
        if "proj" in key:
            assert torch.equal(before[key] == 0, after[key] == 0)
            assert Pattern.parse("2:4" if name == "2:4" else "free").holds(after[key] != 0)
        changed += not torch.equal(before[key], after[key])
    assert changed >= 7 * 3
    assert section["masked_matrices"] == 7 * 3
    assert section["zeros_kept"] == sum(int((w == 0).sum()) for k, w in before.items() if "proj" in k)


@pytest.mark.parametrize("how", ["distill", "lora"])
def test_uneven_models_train_as_they_are(
    how: str, recover: Callable[..., dict[str, Any]], pruned: dict[str, Path], tmp_path: Path
) -> None:
    report = recover("channel", how=how)
    assert report["recovery"]["held_out_after"] < report["recovery"]["held_out_before"]
    assert report["recovery"]["masked_matrices"] == 0
    assert (tmp_path / "out" / "modeling_secateur.py").is_file()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["per_layer_config"]
    shapes = [{k: w.shape for k, w in weights(folder).items()} for folder in (pruned["channel"], tmp_path / "out")]
    assert shapes[0] == shapes[1]
    ids = torch.arange(8).view(1, -1)
    assert secateur.load(tmp_path / "out")(input_ids=ids).logits.isfinite().all()


def test_depth_cuts_learn_hidden_states_by_the_plan(recover: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    report = recover("layer", loss="logits:1,hidden:0.5")
    section = report["recovery"]
    kept = json.loads((tmp_path / "out" / "plan.json").read_text())["layers"]
    assert section["layer_map"] == [[1, kept[1]], [2, 3]]
    assert section["held_out_after"] < section["held_out_before"]


def test_what_does_harm_is_not_kept(shared: Path, tmp_path: Path) -> None:
    model, text = shared / "models" / "stories260K", shared / "data" / "tinystories" / "calibrate.jsonl"
    told = {"how": "full", "data": str(text), "steps": 4, "batch": 4, "length": 64, "learning_rate": 1.0}
    settings = secateur.make_recovery(told)
    report = secateur.recover(model, tmp_path / "out", settings, evaluate="none", speed=False, quiet=True)
    assert report["recovery"]["kept_start"]
    assert any("the start was kept" in line for line in report["warnings"])
    before, after = weights(model), weights(tmp_path / "out")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_best_state_is_kept_not_the_last(
    recover: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    honest = Recoverer.look
    seen: list[float] = []

    def look(trainer: Recoverer) -> float:
        worse = 100.0 if trainer.state.global_step > 4 else 0.0
        seen.append(honest(trainer) + worse)
        return seen[-1]

    monkeypatch.setattr(Recoverer, "look", look)
    report = recover("free", how="full", evaluate_every=2)
    assert report["recovery"]["best_step"] == 4
    assert report["recovery"]["held_out_after"] == min(seen)
    again = recover("free", "short", how="full", evaluate_every=2)
    assert again["recovery"]["held_out_after"] == report["recovery"]["held_out_after"]


def test_the_range_test_finds_a_rate(recover: Callable[..., dict[str, Any]]) -> None:
    section = recover("free", how="full", learning_rate=None, steps=10)["recovery"]
    tried = {row["learning_rate"]: row["held_out"] for row in section["rates_tried"]}
    assert section["learning_rate"] in tried
    assert tried[section["learning_rate"]] < section["held_out_before"]
    assert section["held_out_after"] < section["held_out_before"]


def test_an_adapter_loads_with_plain_peft(
    recover: Callable[..., dict[str, Any]], pruned: dict[str, Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    report = recover("free", how="lora", merge=False, rank=4, evaluate=None)
    assert report["gate"]["max_logit_difference"] < 1e-3  # found by a fresh process
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert any("would fill the zeros" in line for line in report["warnings"])
    base = AutoModelForCausalLM.from_pretrained(pruned["free"])
    model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    ids = torch.arange(3, 19).view(1, -1)
    with torch.no_grad(), model.disable_adapter():
        plain = model(input_ids=ids).logits
    assert not torch.allclose(model(input_ids=ids).logits, plain)
    states = {state["state"]: state["perplexity"] for state in report["recovery"]["states"]}
    assert states["recovered"] < states["pruned"]
    assert states["original"] == report["evaluation"]["before"]["perplexity"]
    assert {"before", "pruned", "after"} <= set(report["samples"][0])


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Recoverer.training_step

    def stopped(trainer: Recoverer, *arguments: Any, **more: Any) -> Any:
        if trainer.args.max_steps > train.MEASURED and trainer.state.global_step == step:
            raise KeyboardInterrupt
        return honest(trainer, *arguments, **more)

    monkeypatch.setattr(Recoverer, "training_step", stopped)


@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    how: str, recover: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    recover("free", "straight", how=how, evaluate_every=2)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            recover("free", how=how, evaluate_every=2)
    assert (tmp_path / "out" / WORK / TRAINING / "checkpoint-4").is_dir()
    assert not list((tmp_path / "out").rglob("*.bin"))  # pickled arguments
    with pytest.raises(InputError, match="the run differs: steps was 8, is 9"):
        recover("free", how=how, evaluate_every=2, steps=9, resume=True)
    report = recover("free", how=how, evaluate_every=2, resume=True)
    assert report["recovery"]["steps"] == 8
    one, two = weights(tmp_path / "straight"), weights(tmp_path / "out")
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not (tmp_path / "out" / WORK).exists()


def test_a_stopped_run_can_be_finished(recover: Callable[..., dict[str, Any]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            recover("free", how="full", evaluate_every=2)
    report = recover("free", how="full", evaluate_every=2, resume=True, finish=True)
    assert report["recovery"]["best_step"] in (2, 4)
    assert report["recovery"]["held_out_after"] < report["recovery"]["held_out_before"]


def test_nothing_is_left_of_a_run_that_stops_before_it_trains(
    recover: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_forecast", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            recover("free")
    assert not (tmp_path / "out").exists()


def test_a_cache_of_the_teacher_does_what_the_teacher_does(
    recover: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "teacher.safetensors"
    live = recover("free", "live", top_k=16, loss="logits")["recovery"]
    made = recover("free", "made", top_k=16, teacher_cache=str(cache))["recovery"]
    size = cache.stat().st_mtime_ns
    monkeypatch.setattr(session, "load", None)  # nobody needs the teacher any more
    used = recover("free", "used", top_k=16, teacher_cache=str(cache))["recovery"]
    assert cache.stat().st_mtime_ns == size
    for other in (made, used):
        assert other["held_out_after"] == pytest.approx(live["held_out_after"], rel=1e-4)
    with pytest.raises(InputError, match="was made for another"):
        recover("free", "other", top_k=8, teacher_cache=str(cache))
    assert not (tmp_path / "other").exists()


def test_a_teacher_that_does_not_fit_is_streamed(
    recover: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, streamed = tmp_path / "whole.safetensors", tmp_path / "streamed.safetensors"
    recover("free", "a", top_k=4, teacher_cache=str(whole))
    monkeypatch.setattr(session, "fits_in_memory", lambda *_: False)
    recover("free", "b", top_k=4, teacher_cache=str(streamed))
    one, two = load_file(whole), load_file(streamed)
    torch.testing.assert_close(one["teacher_log_p"], two["teacher_log_p"], rtol=1e-4, atol=1e-4)
    assert (one["teacher_ids"] == two["teacher_ids"]).float().mean() > 0.999


def test_only_answers_are_learned(recover: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i * 37 % 91}", "completion": " = yes"} for i in range(200)]
    file = tmp_path / "task.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    section = recover("free", how="full", data=str(file), steps=30)["recovery"]
    assert math.exp(section["held_out_after"]) < 0.5 * math.exp(section["held_out_before"])


def test_as_the_last_stage_of_a_recipe(source: Path, tmp_path: Path) -> None:
    values = {"model": str(source / "model"), "calibrate": str(source / "text.jsonl"), "samples": 8, "length": LENGTH}
    values |= {"sparsity": 0.5, "method": "magnitude", "speed": False}
    told = {"how": "distill", "steps": 8, "batch": 4, "length": LENGTH, "learning_rate": 3e-3}
    secateur.prune(secateur.make_recipe(values), tmp_path / "cut", quiet=True)
    recipe = secateur.make_recipe({**values, "recover": told})
    report = secateur.prune(recipe, tmp_path / "out", quiet=True)
    states = {state["state"]: state["perplexity"] for state in report["recovery"]["states"]}
    assert states["original"] < states["recovered"] < states["pruned"]
    assert report["evaluation"]["after"]["perplexity"] == states["recovered"]
    one, two = weights(tmp_path / "cut"), weights(tmp_path / "out")
    assert all(torch.equal(one[key] == 0, two[key] == 0) for key in one if "proj" in key)
    page = (tmp_path / "out" / "report.html").read_text()
    assert ">Recovery</h2>" in page
    assert "## Recovery" in (tmp_path / "out" / "README.md").read_text()
    again = secateur.load_recipe(tmp_path / "out" / "recipe.yaml")
    assert again == recipe


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"how": "distil"}, "'full' or 'lora'|how = 'distil'"),
        ({"stepps": 3}, "did you mean 'steps'"),
        ({"loss": "logit"}, "did you mean 'logits'"),
        ({"loss": "lm:x"}, "weights are numbers"),
        ({"how": "full", "top_k": 4}, "top_k is for the loss 'logits'"),
        ({"teacher_cache": "x"}, "say how many with top_k"),
        ({"merge": False}, "use how lora"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        secateur.make_recovery(values)
    with pytest.raises(InputError, match=said):
        secateur.make_recipe({"model": "x", "sparsity": 0.5, "recover": values})


def test_input_that_cannot_work_leaves_no_trace(
    recover: Callable[..., dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    for values, said in (
        ({"length": 65}, "over the model's context"),
        ({"batch": 5, "micro_batch": 2}, "doesn't divide"),
        ({"data": "nowhere.jsonl"}, "does not exist"),
        ({"teacher": "nowhere"}, "nowhere"),
        ({"finish": True}, "add --resume"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            recover("free", **values)
        assert not (tmp_path / "out").exists()
    settings = secateur.make_recovery({"data": str(source / "text.jsonl"), "length": LENGTH})
    with pytest.raises(InputError, match="doesn't say what it was pruned from"):
        secateur.recover(source / "model", tmp_path / "out", settings)


def test_a_dry_run_only_forecasts(recover: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    found = recover("free", dry_run=True)["forecast"]
    assert found["tokens"] == 8 * 4 * LENGTH
    assert found["flops"] > 6 * 9000 * found["tokens"]  # 2 forward, 4 backward, and the teacher
    assert not (tmp_path / "out").exists()
