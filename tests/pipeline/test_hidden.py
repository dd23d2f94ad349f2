"""Fewer hidden dimensions, from the command to the checkpoint that plain transformers load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import secateur
from secateur.calibration.spectrum import moments_of_stream
from secateur.cli import app as cli
from secateur.config.plan import Plan
from secateur.config.recipe import make_recipe
from secateur.errors import InputError
from secateur.methods import METHODS
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.pipeline import hidden, one_shot
from secateur.pipeline.limits import resolved
from secateur.pipeline.schedule import pruning_steps
from tests.model import tiny


def told(shared: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(shared / "models" / "stories260K"),
        "calibrate": str(shared / "data" / "tinystories" / "calibrate.jsonl"),
        "sites": "hidden",
        "sparsity": 0.25,
        "samples": 16,
        "length": 64,
        "evaluate": "none",
        "speed": False,
        **changes,
    }


def prune(shared: Path, out: Path, resume: bool = False, **changes: Any) -> dict[str, Any]:
    return secateur.prune(make_recipe(told(shared, **changes)), out, resume=resume, quiet=True)


def loss(folder: Path, ids: Tensor) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


# ----------------------------------------------------------------------------- the basis


def test_what_is_read_is_what_hooks_see(shared: Path) -> None:
    """The moments against transformers' own norms, gains divided out, in fp64 and token by token."""
    path = shared / "models" / "stories260K"
    checkpoint = Checkpoint.open(path)
    ids = secateur.calibrate(checkpoint, told(shared)["calibrate"], 3, 40).tokens
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    found = {place.name: place.moment for place in moments_of_stream(streamed, ids)}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    seen: dict[str, Tensor] = {}
    norms = {"head": model.model.norm}
    for index, layer in enumerate(model.model.layers):
        norms |= {
            f"layers.{index}.attention": layer.input_layernorm,
            f"layers.{index}.ffn": layer.post_attention_layernorm,
        }
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].double()}))
    with torch.no_grad():
        model(input_ids=ids)
    assert list(found) == [*(f"layers.{i}.{what}" for i in range(5) for what in ("attention", "ffn")), "head"]
    for name, moment in found.items():
        want = torch.zeros_like(moment)
        for token in seen[name].flatten(0, 1):
            x = token / ((token * token).mean() + 1e-5).sqrt()
            want += torch.outer(x, x)
        torch.testing.assert_close(moment, want / ids.numel(), rtol=1e-4, atol=1e-4)


def test_no_other_basis_keeps_more_energy() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 12, generator=generator, dtype=torch.float64) * torch.arange(1, 13)
    moment = x.T @ x / 300
    best = METHODS["pca"].basis(moment, 0)  # type: ignore[misc]
    torch.testing.assert_close(best.vectors.T @ best.vectors, torch.eye(12, dtype=torch.float64))
    assert list(best.scores) == sorted(best.scores, reverse=True)
    for k in (1, 5, 11):
        kept = (x @ best.vectors[:, :k]).square().sum() / 300
        assert float(kept) == pytest.approx(float(best.scores[:k].sum()))
        for seed in range(20):
            other = METHODS["random"].basis(moment, seed)  # type: ignore[misc]
            torch.testing.assert_close(other.vectors.T @ other.vectors, torch.eye(12, dtype=torch.float64))
            assert (x @ other.vectors[:, :k]).square().sum() / 300 <= kept


# ----------------------------------------------------------------------------- a run


def test_it_is_fitted_and_loads_plainly(whole: Path, tmp_path: Path) -> None:
    report = prune(whole, tmp_path / "out")
    plain = prune(whole, tmp_path / "plain", refit=False)
    prune(whole, tmp_path / "random", refit=False, method="random")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["hidden_size"], config["head_dim"], config["tie_word_embeddings"]) == (48, 8, False)
    site = report["sites"][0]
    assert (site["kind"], site["units"], site["kept"], site["method"]) == ("hidden", 64, 48, "pca")
    assert all(0.5 < share < 1 for share in site["energies"].values())
    held = sum(t.numel() for t in load_file(tmp_path / "out" / "model.safetensors").values())
    assert report["parameters"]["after"] == plain["parameters"]["after"] == held < report["parameters"]["before"]
    assert report["result"]["loader"] == "transformers"
    # On sequences that it wasn't fitted to.
    ids = secateur.calibrate(told(whole)["model"], told(whole)["calibrate"], 24, 64).tokens[16:]
    fitted, cut, control = (loss(tmp_path / name, ids) for name in ("out", "plain", "random"))
    assert fitted < cut - 0.1
    assert cut < control


def test_the_result_is_recovered_and_cut_further(shared: Path, tmp_path: Path) -> None:
    """Channels and a layer go after the dimensions, in two steps; counts are of the original."""
    sparsity = {"hidden": 0.25, "channel": 0.5, "layer": 0.2}
    recover = {"how": "distill", "steps": 4, "batch": 2, "length": 32, "learning_rate": 1e-4}
    asked = {"sites": "hidden,channel,layer", "sparsity": sparsity, "steps": 2, "schedule": "linear"}
    report = prune(shared, tmp_path / "out", recover=recover, **asked)
    held = sum(t.numel() for t in load_file(tmp_path / "out" / "model.safetensors").values())
    assert report["parameters"]["after"] == held
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]) == (48, 4, 86)
    assert [step["step"] for step in report["steps"]] == [0, 1, 2]
    assert report["steps"][-1]["parameters"] == held
    assert any("hidden states can't be compared" in warning for warning in report["warnings"])
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_interrupted_run_goes_on(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune(shared, tmp_path / "straight")
    looked, wrote, real, later = [], [], hidden.write_block, one_shot.save

    def looks(*given: Any) -> Any:
        looked.append(given)
        return moments_of_stream(*given)

    def stops_there(folder: Path, layer: Any, *rest: Any) -> None:
        real(folder, layer, *rest)
        wrote.append(folder.name)
        if wrote.count("blocks") == 3 and len(wrote) == 5 + 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(hidden, "moments_of_stream", looks)
    monkeypatch.setattr(hidden, "write_block", stops_there)
    with pytest.raises(KeyboardInterrupt):
        prune(shared, tmp_path / "out")

    def stops_later(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(one_shot, "save", stops_later)
    with pytest.raises(KeyboardInterrupt):
        prune(shared, tmp_path / "out", resume=True)
    monkeypatch.setattr(one_shot, "save", later)
    prune(shared, tmp_path / "out", resume=True)
    assert len(looked) == 1
    assert wrote.count("blocks") == 5
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "out"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_experts_and_biases_are_fitted_too(tmp_path: Path) -> None:
    rows = [json.dumps({"input_ids": tiny.tokens(1, 40, seed=s)[0].tolist()}) for s in range(30)]
    (tmp_path / "text.jsonl").write_text("\n".join(rows))
    for case in ("mixtral", "llama-bias"):
        tiny.save(case, tmp_path / case)
        base = {"model": str(tmp_path / case), "calibrate": str(tmp_path / "text.jsonl"), "sites": "hidden"}
        asked = {**base, "sparsity": 0.25, "samples": 24, "length": 20, "evaluate": "none", "speed": False}
        errors = []
        ids = tiny.tokens(8, 20, seed=99)
        want = tiny.logits(AutoModelForCausalLM.from_pretrained(tmp_path / case, dtype=torch.float32), ids)
        for refit in (True, False):
            out = tmp_path / f"{case}-{refit}"
            secateur.prune(make_recipe({**asked, "refit": refit}), out, quiet=True)
            got = tiny.logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32), ids)
            errors.append(float((got - want).square().mean()))
        assert errors[0] < errors[1]


def test_a_target_in_parameters(shared: Path, tmp_path: Path) -> None:
    recipe = make_recipe(told(shared, sparsity=None, params="85%"))
    found = resolved(recipe, Checkpoint.open(recipe.model))
    report = prune(shared, tmp_path / "out", refit=False, sparsity=found.sparsity)
    assert 0.8 < report["parameters"]["after"] / report["parameters"]["before"] <= 0.85


def test_a_plan_cuts_what_the_hidden_dimensions_have_left(shared: Path, tmp_path: Path) -> None:
    """The plan of a run with hidden dimensions and channels, replayed with that run's recipe: the same weights."""
    sparsity = {"hidden": 0.25, "channel": 0.5}
    recipe = make_recipe(told(shared, sites="hidden,channel", sparsity=sparsity, samples=4, explain=False))
    first = secateur.prune(recipe, tmp_path / "first", quiet=True)
    assert Plan.read(tmp_path / "first" / "plan.json").kinds == {"channel"}
    words = ["--recipe", str(tmp_path / "first" / "recipe.yaml"), "--plan", str(tmp_path / "first" / "plan.json")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["prune", *words, "--out", str(tmp_path / "again"), "--quiet"])
    assert ended.value.code == 0
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [(site["name"], site["kept"]) for site in again["sites"] if site["kind"] == "hidden"] == [("hidden", 48)]
    assert again["parameters"]["after"] == first["parameters"]["after"]


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "how", "message"),
    [
        ({}, {"dry_run": True}, "leave out --dry-run"),
        ({"steps": 2}, {}, "go at once"),
        ({"sparsity": 0.01}, {}, "takes none of 64 hidden dimensions; they go 8 at a time"),
        ({"model": "gpt2"}, {}, "don't allow another basis"),
        ({"recover": {"loss": "hidden"}}, {}, "use --loss logits"),
    ],
)
def test_refusals(changes: dict[str, Any], how: dict[str, Any], message: str, shared: Path, tmp_path: Path) -> None:
    if changes.get("model") == "gpt2":
        changes = {"model": str(tiny.save("gpt2", tmp_path / "gpt2"))}
        (tmp_path / "text.jsonl").write_text(json.dumps({"input_ids": [1] * 2000}))
        changes["calibrate"] = str(tmp_path / "text.jsonl")
    with pytest.raises(InputError, match=message):
        secateur.prune(make_recipe(told(shared, **changes)), tmp_path / "out", quiet=True, **how)
    assert not (tmp_path / "out").exists()


def test_hidden_dimensions_go_before_all_steps() -> None:
    recipe = make_recipe(
        {"model": "m", "sites": "hidden,channel", "sparsity": {"hidden": 0.1, "channel": 0.4}, "steps": 2}
    )
    assert [stop.recipe.sites for stop in pruning_steps(recipe)] == [("channel",)] * 2
    assert [stop.recipe.sparsity["channel"] for stop in pruning_steps(recipe)] == pytest.approx([0.35, 0.4])


def test_it_is_explained(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prune(shared, tmp_path / "out", refit=False)
    with pytest.raises(SystemExit) as end:
        cli.main(["explain", str(tmp_path / "out")])
    assert not end.value.code
    said = capsys.readouterr().out
    assert "48 of 64" in said
    assert "layers.3.ffn" in said


def test_zeros_that_will_be_filled_are_told_beforehand(shared: Path, tmp_path: Path) -> None:
    recipe = make_recipe(told(shared))
    dense = Checkpoint.open(shared / "models" / "stories260K")
    assert hidden.filled_zeros(recipe, dense) == []
    model = AutoModelForCausalLM.from_pretrained(dense.path)
    with torch.no_grad():
        for linear in (module for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)):
            linear.weight[:, ::2] = 0
    model.save_pretrained(tmp_path)
    [line] = hidden.filled_zeros(recipe, Checkpoint.open(tmp_path))
    assert "50% in its first layer" in line
    assert hidden.filled_zeros(make_recipe(told(shared, sites="channel")), Checkpoint.open(tmp_path)) == []
