"""Whole runs that take experts: what is saved, what loads it, what is said of it, what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import secateur
from secateur.cli import app as cli
from secateur.config.plan import Plan
from secateur.config.recipe import make_recipe
from secateur.errors import InputError
from secateur.model.classes import stock_class
from secateur.pipeline import one_shot
from secateur.report.terminal.explained import print_explanation
from tests.small import byte_tokenizer, save_tiny

COMMON = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}
# Layer 1 of the second has no experts.
SOURCES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16},
    "qwen3_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "intermediate_size": 24,
        "mlp_only_layers": [1],
        "head_dim": 8,
    },
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a mixture of each family, a dense model, and text."""
    folder = tmp_path_factory.mktemp("source")
    for name, own in SOURCES.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **{**COMMON, **own})
        stock_class(config)(config).eval().save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    save_tiny(folder / "dense", context=64)
    rows = [{"text": f"the thing number {i} thought that {i * i * 31 % 9973} was then; " * 3} for i in range(60)]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def asked(source: Path, name: str, **changes: Any) -> dict[str, Any]:
    given = {"model": source / name, "calibrate": source / "text.jsonl", "samples": 6, "length": 32}
    given |= {"sites": "expert", "sparsity": 0.34 if name == "qwen3_moe" else 0.25}
    return {**given, "evaluate": "none", "speed": False, **changes}


def prune(out: Path, values: dict[str, Any], **how: Any) -> dict[str, Any]:
    return secateur.prune(make_recipe(values), out, quiet=True, **how)


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
assert "secateur" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, trust_remote_code=False)
with torch.no_grad():
    torch.save(model(input_ids=torch.arange(40).view(2, 20)).logits, sys.argv[2])
"""


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40).view(2, 20)).logits


# One of the families is enough for the command line; what is cut and how it loads is tested for both.
@pytest.mark.parametrize("name", ["mixtral", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def test_experts_go_from_the_command_line_to_a_stock_checkpoint(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a fresh process of our own that knows transformers only."""
    words = [f"--{key}={value}" for key, value in asked(source, name).items() if key not in ("model", "speed")]
    command = ["prune", str(source / name), *words, "--no-speed", "--json"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--out", str(tmp_path / "out")])
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    left = {"mixtral": 3, "qwen3_moe": 4}[name]
    assert AutoConfig.from_pretrained(tmp_path / "out").num_experts == left
    assert "num_experts" not in config(tmp_path / "out")  # a second name for it would be read instead
    assert (report["result"]["uniform"], report["result"]["loader"]) == (True, "transformers")
    assert {site["kind"] for site in report["sites"]} == {"expert"}
    assert {(site["kept"], site["method"], site["error_after_refit"]) for site in report["sites"]} == {
        (left, "reap", None)
    }
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(t.numel() for t in saved.values()) == report["parameters"]["after"] < report["parameters"]["before"]
    for site, entry in zip(report["sites"], Plan.read(tmp_path / "out" / "plan.json").entries, strict=True):
        best = sorted(range(site["units"]), key=lambda unit, scores=site["scores"]: -scores[unit])[:left]
        assert entry.keep == tuple(sorted(best))
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / "out"), str(tmp_path / "got")], check=True)
    got = torch.load(tmp_path / "got", weights_only=True)
    # The same, made by hand from the plan.
    model = AutoModelForCausalLM.from_pretrained(source / name, dtype=torch.float32).eval()
    for entry in Plan.read(tmp_path / "out" / "plan.json").entries:
        mlp = model.model.layers[entry.layer].mlp
        assert entry.keep is not None
        for module, part in ((mlp.experts, "gate_up_proj"), (mlp.experts, "down_proj"), (mlp.gate, "weight")):
            setattr(module, part, torch.nn.Parameter(getattr(module, part)[list(entry.keep)]))
            module.num_experts = left
    torch.testing.assert_close(got, logits(model), atol=1e-5, rtol=1e-5)


def test_layers_may_keep_different_numbers(source: Path, tmp_path: Path) -> None:
    """A protected layer keeps all of its experts: the bundled modelling file then builds each at its own number."""
    for name, protected in (("mixtral", 0), ("qwen3_moe", -1)):
        out = tmp_path / name
        report = prune(out, asked(source, name, protect=(protected,), method=("expert_frequency",)))
        assert report["result"]["uniform"] is False
        assert report["gate"]["max_logit_difference"] < 1e-4
        blocks = [layer.mlp for layer in secateur.load(out).model.layers]
        kept = [block.experts.num_experts for block in blocks if hasattr(block, "gate")]
        assert kept == {"mixtral": [4, 3, 3], "qwen3_moe": [4, 6]}[name]


def test_a_plan_may_say_a_number_for_each_layer(source: Path, tmp_path: Path) -> None:
    prune(tmp_path / "first", asked(source, "mixtral"), dry_run=True)
    plan = json.loads((tmp_path / "first" / "plan.json").read_text(encoding="utf-8"))
    kept = [[1, 3], [0, 2, 3], [0, 1, 2, 3]]
    for entry, keep in zip(plan["entries"], kept, strict=True):
        entry["keep"] = keep
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    report = prune(tmp_path / "out", asked(source, "mixtral"), plan=Plan.read(tmp_path / "plan.json"))
    assert report["result"]["uniform"] is False
    assert [entry.keep for entry in Plan.read(tmp_path / "out" / "plan.json").entries] == [tuple(k) for k in kept]
    layers = secateur.load(tmp_path / "out").model.layers
    original = AutoModelForCausalLM.from_pretrained(source / "mixtral").model.layers
    for layer, dense, keep in zip(layers, original, kept, strict=True):
        assert torch.equal(layer.mlp.experts.down_proj, dense.mlp.experts.down_proj[keep])
        assert layer.mlp.gate.num_experts == len(keep)


@pytest.mark.parametrize("name", SOURCES)
def test_a_plan_of_experts_is_replayed(name: str, source: Path, tmp_path: Path) -> None:
    values = asked(source, name, method=("magnitude",))
    prune(tmp_path / "first", values)
    plan = Plan.read(tmp_path / "first" / "plan.json")
    replayed = prune(tmp_path / "second", {**values, "method": ("random",)}, plan=plan)
    assert {site["method"] for site in replayed["sites"]} == {"magnitude"}
    first, second = (load_file(tmp_path / out / "model.safetensors") for out in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = prune(tmp_path / "other", {**values, "method": ("random",)})
    assert {s["method"] for s in other["sites"]} == {"random"}
    assert Plan.read(tmp_path / "other" / "plan.json").entries != plan.entries


RUNS: dict[str, dict[str, Any]] = {
    "tuned": {"quality": "best", "reconstruct": 100, "masks": "gradual", "samples": 24, "general_text": 0},
    "with all that is inside": {"sites": "expert,channel,kv_group,weight", "quality": "balanced", "sparsity": 0.5},
    "global": {"allocate": "global", "sites": "expert,channel", "sparsity": 0.34},
    "sensitivity": {"allocate": "sensitivity", "sparsity": 0.34},
    "owl": {"allocate": "owl", "sparsity": 0.34},
    "with gradients": {"sites": "expert,channel", "method": ("taylor", "reap"), "sparsity": 0.5},
}


@pytest.mark.parametrize("asked_for", RUNS)
@pytest.mark.parametrize("name", SOURCES)
def test_experts_go_with_everything_else(name: str, asked_for: str, source: Path, tmp_path: Path) -> None:
    report = prune(tmp_path / "out", asked(source, name, **RUNS[asked_for]))
    experts = [site for site in report["sites"] if site["kind"] == "expert"]
    assert [site["layer"] for site in experts] == ([0, 2] if name == "qwen3_moe" else [0, 1, 2])
    assert any(site["kept"] < site["units"] for site in experts)
    assert all(site["kept"] >= SOURCES[name]["num_experts_per_tok"] for site in experts)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(t.numel() for t in saved.values()) == report["parameters"]["after"]
    if asked_for == "tuned":
        tuned = [entry for entry in report["reconstruction"] if entry["steps"]]
        assert tuned
        assert all(entry["after"] < entry["before"] for entry in tuned)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("dense", {}, r"^site 'expert': llama models like this one have none$"),
    ("mixtral", {"sparsity": 0.75}, r"^sparsity 0.75 leaves 1 of 4 experts, but a token takes 2; give 0.5 or less$"),
    ("qwen3_moe", {"sparsity": 0.05}, r"^sparsity 0.05 takes none of 6 expert units away; .* give 0.167 or more$"),
]


@pytest.mark.parametrize(("name", "changes", "said"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_cannot_be_is_refused_in_one_line(
    name: str, changes: dict[str, Any], said: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said) as refused:
        prune(tmp_path / "out", asked(source, name, **changes))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_methods_are_held_to_what_they_score() -> None:
    with pytest.raises(InputError, match=r"method 'obs' doesn't score expert; methods that do: .*reap"):
        make_recipe({"model": "m", "sites": "expert", "sparsity": 0.25, "method": "obs"})
    with pytest.raises(InputError, match="method 'reap' doesn't score channel"):
        make_recipe({"model": "m", "sites": "channel", "sparsity": 0.25, "method": "reap"})


def test_a_plan_that_keeps_too_few_is_refused(source: Path, tmp_path: Path) -> None:
    prune(tmp_path / "out", asked(source, "mixtral", method=("random",)), dry_run=True)
    text = (tmp_path / "out" / "plan.json").read_text(encoding="utf-8")
    plan = json.loads(text)
    plan["entries"][1]["keep"] = [3]
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    said = r"the plan keeps 1 of 4 units of layers\.1\.expert, but a token takes 2; keep 2 or more"
    with pytest.raises(InputError, match=said):
        prune(tmp_path / "again", asked(source, "mixtral"), plan=Plan.read(tmp_path / "plan.json"))


def test_an_interrupted_run_goes_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that were finished come back with as many experts as they have left."""
    values = asked(source, "mixtral")
    prune(tmp_path / "whole", values)
    cut: Callable[..., Any] = one_shot.cut_block

    seen: list[int] = []

    def stopped(block: Any, *rest: Any) -> Any:
        seen.append(block.index)
        if seen == [0, 1, 2]:
            raise InputError("stopped")
        return cut(block, *rest)

    monkeypatch.setattr(one_shot, "cut_block", stopped)
    with pytest.raises(InputError, match="stopped"):
        prune(tmp_path / "out", values)
    prune(tmp_path / "out", values, resume=True)
    assert seen == [0, 1, 2, 2]
    first, second = (load_file(tmp_path / out / "model.safetensors") for out in ("whole", "out"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_explain_says_between_which_scores_the_line_is(source: Path, tmp_path: Path) -> None:
    report = prune(tmp_path / "out", asked(source, "mixtral"), dry_run=True)
    found = secateur.explain(tmp_path / "out")
    assert [row["scores"] for row in found["experts"]] == [list(site["scores"]) for site in report["sites"]]
    shown = io.StringIO()
    print_explanation(found, Console(file=shown, width=120))
    gone, kept = sorted(report["sites"][1]["scores"])[:2]
    line = next(line for line in shown.getvalue().splitlines() if line.startswith("layers.1.expert"))
    *site, below, above, method = line.split()  # of one precision
    assert (site, method) == (["layers.1.expert", "1", "of", "4"], "reap")
    assert [float(below), float(above)] == pytest.approx([gone, kept], rel=1e-2)
    everything = {**found, "experts": [{**row, "scores": None} for row in found["experts"]]}
    print_explanation(everything, Console(file=shown, width=120))  # a replayed plan has none
