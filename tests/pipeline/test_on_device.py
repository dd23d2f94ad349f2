"""Whole runs on a device that isn't the CPU: the same weights, to the bit, as the same kernels do the work."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.config.recipe import make_recipe
from secateur.methods.index import INDEX
from secateur.pipeline import one_shot
from secateur.system import accelerator
from tests.cases import case
from tests.model.mixture import upcycled
from tests.simulated.device import simulate
from tests.simulated.fixtures import no_double as no_double
from tests.small import byte_tokenizer, save_tiny, tiny_llama
from tests.system.launch import torchrun

TEXT = "the quick brown fox jumps over the lazy dog while three cats look on and think of other things, "
SMALL = {"hidden_size": 32, "intermediate_size": 48, "context": 64}

# name -> (model, what is asked for)
QUICK: dict[str, tuple[str, dict[str, Any]]] = {
    "balanced": (
        "llama",
        {"sites": "weight", "sparsity": 0.5, "quality": "balanced", "protect": "0", "general_text": 0},
    ),
    "units": (
        "llama",
        {"sites": "channel,query_head,kv_group", "sparsity": {"channel": 0.25, "query_head": 0.5, "kv_group": 0.5}},
    ),
    "hidden": ("llama", {"sites": "hidden", "sparsity": 0.25}),
}


def _methods(ability: str) -> list[str]:
    return [name for name, facts in INDEX.items() if ability in facts.prunes]


EVERY: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"weight, {name}": ("llama", {"sites": "weight", "sparsity": 0.5, "method": name})
        for name in _methods("weights")
    },
    **{
        f"channel, {name}": ("llama", {"sites": "channel", "sparsity": 0.25, "method": name})
        for name in _methods("units")
    },
    **{
        f"kv_group, {name}": ("llama", {"sites": "kv_group", "sparsity": 0.5, "method": name})
        for name in _methods("units")
    },
    **{
        f"expert, {name}": ("mixtral", {"sites": "expert", "sparsity": 0.25, "method": name})
        for name in _methods("experts")
    },
    **{
        f"layer, {name}": ("llama", {"sites": "layer", "sparsity": 0.5, "method": name})
        for name in _methods("layers")
    },
    **{
        f"hidden, {name}": ("llama", {"sites": "hidden", "sparsity": 0.25, "method": name})
        for name in _methods("dimensions")
    },
    "sparsegpt 2:4": ("llama", {"sites": "weight", "pattern": "2:4", "method": "sparsegpt"}),
    "experts": ("mixtral", {"sites": "expert,channel", "sparsity": 0.25}),
    "sub-blocks": ("llama", {"sites": "attention", "sparsity": 0.5}),
    "ffn": ("llama", {"sites": "ffn", "sparsity": 0.5}),
    "merged experts": ("mixtral", {"sites": "expert", "sparsity": 0.25, "merge_experts": True}),
    "experts, weights": ("mixtral", {"sites": "weight", "sparsity": 0.5, "quality": "balanced"}),
    "best, weights": ("llama", {"sites": "weight", "sparsity": 0.5, "quality": "best", "reconstruct": 12}),
    "best, channels": ("llama", {"sites": "channel", "sparsity": 0.25, "quality": "best", "reconstruct": 12}),
    "gradual": ("llama", {"sites": "weight", "sparsity": 0.5, "steps": 2, "quality": "balanced"}),
    "global": ("llama", {"sites": "channel", "sparsity": 0.25, "allocate": "global"}),
    "owl": ("llama", {"sites": "weight", "sparsity": 0.5, "allocate": "owl"}),
    "evolve": ("llama", {"sites": "weight", "sparsity": 0.5, "allocate": "evolve", "search": "6"}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "llama", **SMALL)
    upcycled(tiny_llama(**SMALL), 0.1).save_pretrained(folder / "mixtral")
    byte_tokenizer().save_pretrained(folder / "mixtral")
    (folder / "text.txt").write_text("\n\n".join(TEXT[i:] + TEXT[:i] for i in range(0, 90, 3)), encoding="utf-8")
    return {name: folder / name for name in ("llama", "mixtral", "text.txt")}


@pytest.fixture(autouse=True)
def device() -> str:
    return simulate().type


Asked = tuple[str, dict[str, Any]]


def settings_of(models: dict[str, Path], asked: Asked) -> dict[str, Any]:
    model, told = asked
    values = {"model": models[model], "calibrate": models["text.txt"], "samples": 6, "length": 16, "speed": False}
    return {**values, "evaluate": "none", "dtype": "float32", **told}


@pytest.fixture
def runs(models: dict[str, Path], tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    def run(name: str, asked: Asked, device: str, resume: bool = False) -> tuple[Path, dict[str, Any]]:
        values = settings_of(models, asked) | {"device": device}
        out = tmp_path / f"{name}-{device}".replace(" ", "-").replace(":", "-")
        return out, secateur.prune(make_recipe(values), out, resume=resume, quiet=True)

    return run


def same(one: Path, other: Path) -> None:
    own, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert own.keys() == others.keys()
    for name in own:
        assert torch.equal(own[name], others[name]), name
    assert (one / "plan.json").read_text() == (other / "plan.json").read_text()


@pytest.mark.parametrize("name", QUICK)
def test_what_the_device_cuts_is_what_the_cpu_cuts(name: str, device: str, runs: Any) -> None:
    same(*(runs(name, QUICK[name], where)[0] for where in ("cpu", device)))


def test_attention_and_experts_run_in_kernels(
    device: str, runs: Any, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: Counter[str] = Counter()

    def counted(name: str, own: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            called[name] += any(x.device.type == device for x in args if isinstance(x, torch.Tensor))
            return own(*args, **named)

        return call

    for name in ("scaled_dot_product_attention", "grouped_mm"):
        monkeypatch.setattr(torch.nn.functional, name, counted(name, getattr(torch.nn.functional, name)))
    asked = {"sites": "weight", "sparsity": 0.5, "method": "wanda"}
    _, report = runs("kernels", ("mixtral", asked), device)
    layers, batches = 2, 1
    assert called["scaled_dot_product_attention"] >= 2 * layers * batches  # to look, and to hand on
    assert called["grouped_mm"] >= 2 * layers * batches  # of an expert's two matrices, to hand on
    slow = "attention of this model: no fused kernel, so slow on sim"
    assert slow not in report["warnings"]
    # A class without such kernels, or a folder that says so, isn't slow in silence.
    folder = tmp_path / "eager"
    shutil.copytree(models["llama"], folder)
    config = json.loads((folder / "config.json").read_text()) | {"_attn_implementation": "eager"}
    (folder / "config.json").write_text(json.dumps(config))
    values = settings_of(models, ("llama", asked)) | {"model": folder}
    for where, said in ((device, True), ("cpu", False)):
        report = secateur.prune(make_recipe(values | {"device": where}), tmp_path / where, quiet=True, dry_run=True)
        assert (slow in report["warnings"]) == said


def test_an_interrupted_run_goes_on(device: str, runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("llama", {"sites": "weight", "sparsity": 0.5, "method": "sparsegpt"})
    whole, _ = runs("whole", asked, device)
    cut_block = one_shot.cut_block

    def stops(block: Any, *rest: Any) -> Any:
        if block.index == 1:
            raise KeyboardInterrupt
        return cut_block(block, *rest)

    monkeypatch.setattr(one_shot, "cut_block", stops)
    with pytest.raises(KeyboardInterrupt):
        runs("stopped", asked, device)
    monkeypatch.undo()
    same(whole, runs("stopped", asked, device, resume=True)[0])


SLOW = pytest.mark.slow


@pytest.mark.parametrize("how", [pytest.param("lora", marks=SLOW), "distill", pytest.param("full", marks=SLOW)])
def test_recoveries_come_to_the_same(
    how: str, device: str, runs: Any, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "multiplies_bf16", lambda where: False)  # a CPU may, and would round otherwise
    pruned, _ = runs("pruned", ("llama", {"sites": "weight", "sparsity": 0.5, "method": "wanda"}), "cpu")
    told = {"data": str(models["text.txt"]), "steps": 2, "batch": 2, "length": 16, "learning_rate": 3e-3, "how": how}
    found = []
    for where in ("cpu", device):
        out = tmp_path / f"recovered-{where}"
        settings = {"device": where, "dtype": "float32", "evaluate": "none", "speed": False, "quiet": True}
        report = secateur.recover(pruned, out, secateur.make_recovery(told), **settings)
        assert report["recovery"]["held_out_after"] < report["recovery"]["held_out_before"]
        found.append(load_file(out / "model.safetensors"))
    for name in found[0]:  # not to the bit: some sums of a training are taken in another order
        assert torch.allclose(*(weights[name] for weights in found), rtol=0, atol=1e-6), name
        assert torch.equal(*(weights[name] == 0 for weights in found)), name


def test_what_is_measured_and_written_is_the_same(device: str, models: Any, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    items = [{"query": "the quick", "choices": [" brown", " lazy", " cat"], "gold": i % 3} for i in range(6)]
    task.write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    told = {"dtype": "float32", "quiet": True}

    def everything(where: str) -> list[Any]:
        one, other = models["llama"], models["mixtral"]
        return [
            secateur.evaluate(one, str(models["text.txt"]), against=other, device=where, speed=False, **told),
            secateur.generate(one, "the quick", max_new_tokens=8, device=where, dtype="float32"),
            secateur.evaluate_tasks(one, str(task), device=where, **told),
        ]

    own, others = (without_places(everything(where)) for where in ("cpu", device))
    assert own == others


def without_places(found: Any) -> Any:
    """What was found, but not where and how fast."""
    if isinstance(found, dict):
        return {key: without_places(value) for key, value in found.items() if key not in ("device", "seconds")}
    return [without_places(value) for value in found] if isinstance(found, list) else found


@pytest.mark.slow
def test_sensitivity_is_the_same(device: str, models: Any) -> None:
    told = {"samples": 4, "length": 32, "dtype": "float32"}
    found = [
        secateur.sensitivity(models["llama"], str(models["text.txt"]), device=d, **told) for d in ("cpu", device)
    ]
    assert without_places(found[0]) == without_places(found[1])


@pytest.mark.slow
def test_two_ranks_cut_what_one_cuts(device: str, runs: Any, models: Any, tmp_path: Path) -> None:
    """gloo carries the tensors, as it does wherever torch names nothing better for a kind of device."""
    asked = ("llama", {"sites": "weight", "sparsity": 0.5, "quality": "balanced"})
    alone, _ = runs("alone", asked, device)
    job = {**settings_of(models, asked), "device": f"{device}:0", "model": str(models["llama"])}
    job["calibrate"] = str(models["text.txt"])
    (tmp_path / "job.json").write_text(json.dumps({"recipe": job, "out": str(tmp_path / "two")}))
    done = torchrun(["-m", "tests.simulated.ranks", str(tmp_path / "job.json")], TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    own, others = (load_file(folder / "model.safetensors") for folder in (alone, tmp_path / "two"))
    for name in own:  # sums of two halves are rounded otherwise
        assert torch.allclose(own[name], others[name], rtol=1e-3, atol=1e-4), name
        assert torch.equal(own[name] == 0, others[name] == 0), name


@pytest.mark.slow
def test_everything_is_cut_without_fp64(device: str, runs: Any, no_double: None) -> None:
    for name, asked in {**QUICK, **EVERY}.items():
        with case(name):
            own, others = (runs(f"{name}, narrow", asked, where)[0] for where in ("cpu", device))
            shapes = [{k: w.shape for k, w in load_file(out / "model.safetensors").items()} for out in (own, others)]
            assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_everything_is_cut_alike(device: str, runs: Any) -> None:
    for name, asked in EVERY.items():
        with case(name):
            same(*(runs(name, asked, where)[0] for where in ("cpu", device)))
