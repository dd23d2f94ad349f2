"""Whole runs on real models: what is cut, what is saved, what loads it, what the report says about it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import secateur
from secateur.config.plan import Plan
from secateur.config.recipe import load_recipe, make_recipe
from secateur.data.embedded import embedded_path
from secateur.errors import ResourceError, SecateurError, VerificationError
from secateur.evaluation.loading import load_tokenizer
from secateur.pipeline import one_shot
from secateur.report.html import page
from secateur.workspace.folder import WORK

SAMPLES, LENGTH = 16, 64
SMALL, LARGE, GPT2 = "stories260K", "stories3M-fp16", "shakespeare-gpt2-357K"

# name -> (model, what is asked for): every kind of site, alone and together, on three real models.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "channel": (SMALL, {"sites": "channel", "sparsity": 0.25}),
    "query_head": (SMALL, {"sites": "query_head", "sparsity": 0.5, "method": "wanda"}),
    "kv_group": (SMALL, {"sites": "kv_group", "sparsity": 0.25}),
    "layer": (SMALL, {"sites": "layer", "sparsity": 0.2, "method": "block_influence"}),
    "free": (SMALL, {"sites": "weight", "sparsity": 0.5, "method": "wanda"}),
    "2:4": (SMALL, {"sites": "weight", "pattern": "2:4"}),
    "everything": (
        SMALL,
        {
            "sites": "weight,channel,query_head,kv_group,layer",
            "sparsity": {"weight": 0.5, "channel": 0.5, "query_head": 0.5, "kv_group": 0.5, "layer": 0.4},
            "method": "magnitude,block_influence",
        },
    ),
    "protected": (SMALL, {"sites": "channel", "sparsity": 0.25, "protect": "0,-1", "method": "flap"}),
    "with biases": (SMALL, {"sites": "channel,query_head", "sparsity": 0.5, "bias": "add"}),
    "not refitted": (SMALL, {"sites": "channel", "sparsity": 0.25, "method": "magnitude", "refit": False}),
    "fp16": (LARGE, {"sites": "channel,weight", "sparsity": 0.25, "round_to": 64, "method": "magnitude"}),
    "gpt2": (GPT2, {"sites": "channel,query_head", "sparsity": 0.25, "method": "wanda"}),
}
UNEVEN = ("protected", "gpt2")


class Done(NamedTuple):
    """A finished run."""

    source: Path
    out: Path
    report: dict[str, Any]


def asked(shared: Path, name: str, **changes: Any) -> dict[str, Any]:
    """The recipe of one of the RUNS as plain values."""
    model, settings = RUNS[name]
    text = "shakespeare/input.txt" if model == GPT2 else "tinystories/eval.jsonl"
    return {
        "model": shared / "models" / model,
        "calibrate": shared / "data" / text,
        "samples": SAMPLES,
        "length": LENGTH,
        "evaluate": "none",
        "speed": False,
        **settings,
        **changes,
    }


def prune(out: Path, values: dict[str, Any], **how: Any) -> dict[str, Any]:
    return secateur.prune(make_recipe(values), out, quiet=True, **how)


@pytest.fixture(scope="module")
def done(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Done]:
    """name -> its run, made once."""
    runs: dict[str, Done] = {}

    def get(name: str) -> Done:
        if name not in runs:
            out = tmp_path_factory.mktemp("runs") / name.replace(" ", "-").replace(":", "-")
            report = prune(out, asked(shared, name))
            runs[name] = Done(shared / "models" / RUNS[name][0], out, report)
        return runs[name]

    return get


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def ids_for(folder: Path) -> Tensor:
    size = config(folder)["vocab_size"]
    return torch.randint(3, size, (2, 40), generator=torch.Generator().manual_seed(0))


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


# ----------------------------------------------------------------------------- what is saved


@pytest.mark.parametrize("name", RUNS)
def test_the_checkpoint_is_whole(name: str, done: Callable[[str], Done]) -> None:
    run = done(name)
    model = secateur.load(run.out)
    saved = tensors(run.out)
    assert sum(t.numel() for t in saved.values()) == run.report["parameters"]["after"]
    assert model.num_parameters() == run.report["parameters"]["after"]
    assert {t.dtype for t in saved.values()} == {t.dtype for t in tensors(run.source).values()}
    assert all(torch.isfinite(t).all() for t in saved.values())
    assert torch.isfinite(logits(model, ids_for(run.out))).all()
    assert load_tokenizer(run.out)("Once upon").input_ids == load_tokenizer(run.source)("Once upon").input_ids
    assert not (run.out / WORK).exists()
    assert run.report["gate"]["max_logit_difference"] <= 1e-5
    assert run.report["gate"]["max_cache_difference"] <= 1e-5


@pytest.mark.parametrize("name", [name for name in RUNS if name not in UNEVEN])
def test_uniform_results_load_as_stock_models(name: str, done: Callable[[str], Done]) -> None:
    run = done(name)
    assert "auto_map" not in config(run.out)
    assert not list(run.out.glob("*.py"))
    model = AutoModelForCausalLM.from_pretrained(run.out, dtype=torch.float32)
    assert type(model).__module__.startswith("transformers.")
    ids = ids_for(run.out)
    torch.testing.assert_close(logits(model.eval(), ids), logits(secateur.load(run.out), ids))


LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM
found = {}
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    ids = torch.randint(3, model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    how = dict(attention_mask=torch.ones(1, 8), max_new_tokens=8, do_sample=False, pad_token_id=0)
    made = model.generate(ids[:1, :8], **how)
    found[folder] = [model(input_ids=ids).logits.double().sum().item(), type(model).__name__, made[0].tolist()]
assert "secateur" not in sys.modules
print(json.dumps(found))
"""


def test_a_process_that_knows_nothing_of_secateur_loads_them(done: Callable[[str], Done]) -> None:
    runs = [done(name) for name in ("gpt2", "protected", "kv_group", "everything")]
    words = [sys.executable, "-c", LOAD, *(str(run.out) for run in runs)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    for run in runs:
        model, ids = secateur.load(run.out), ids_for(run.out)
        total, name, made = found[str(run.out)]
        assert total == pytest.approx(logits(model, ids).double().sum().item(), rel=1e-5, abs=1e-2)
        assert name == config(run.out)["architectures"][0]
        again = model.generate(
            ids[:1, :8], attention_mask=torch.ones(1, 8), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        assert made == again[0].tolist()


# ----------------------------------------------------------------------------- what is cut


def test_channels(done: Callable[[str], Done]) -> None:
    run = done("channel")
    assert config(run.out)["intermediate_size"] == 129
    assert config(run.out)["model_type"] == "llama"
    assert run.report["parameters"]["after"] == 260_032 - 5 * 43 * 3 * 64
    assert [s["kept"] for s in run.report["sites"]] == [129] * 5
    before, after, plan = tensors(run.source), tensors(run.out), Plan.read(run.out / "plan.json")
    for index in range(5):
        entry = plan.entry(f"layers.{index}.channel")
        assert entry is not None
        assert entry.keep is not None
        for part in ("gate_proj", "up_proj"):
            name = f"model.layers.{index}.mlp.{part}.weight"
            assert torch.equal(after[name], before[name][list(entry.keep)])
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_heads(done: Callable[[str], Done]) -> None:
    query, groups = config(done("query_head").out), config(done("kv_group").out)
    assert (query["model_type"], query["num_attention_heads"], query["num_key_value_heads"]) == ("llama", 4, 4)
    # 6 heads don't divide a hidden size of 64, which Llama refuses and Mistral takes.
    assert (groups["model_type"], groups["num_attention_heads"], groups["num_key_value_heads"]) == ("mistral", 6, 3)
    assert groups["architectures"] == ["MistralForCausalLM"]
    assert query["head_dim"] == groups["head_dim"] == 8


def test_layers(done: Callable[[str], Done]) -> None:
    run = done("layer")
    plan = Plan.read(run.out / "plan.json")
    assert config(run.out)["num_hidden_layers"] == 4 == len(plan.layers)
    before, after = tensors(run.source), tensors(run.out)
    for new, old in enumerate(plan.layers):
        for name in (n for n in after if n.startswith(f"model.layers.{new}.")):
            assert torch.equal(after[name], before[name.replace(f"layers.{new}.", f"layers.{old}.", 1)])
    gone = [s for s in run.report["sites"] if s["kind"] == "layer" and s["kept"] == 0]
    assert [s["layer"] for s in gone] == sorted(set(range(5)) - set(plan.layers))
    assert all(s["score"] is not None for s in run.report["sites"])


def linears(folder: Path) -> dict[str, Tensor]:
    return {n: t for n, t in tensors(folder).items() if n.endswith("_proj.weight")}


def test_zeros_are_counted_exactly(done: Callable[[str], Done]) -> None:
    run = done("free")
    zeros = 0
    for name, weight in linears(run.out).items():
        rows = (weight == 0).sum(1)
        assert (rows == int(weight.shape[1] * 0.5 + 0.5)).all(), name
        zeros += int(rows.sum())
    assert zeros == sum(site["weights_zeroed"] for site in run.report["sites"])
    assert run.report["parameters"]["nonzero_after"] == sum(int(t.count_nonzero()) for t in tensors(run.out).values())
    assert run.report["sparsity"]["linear_weights"] == pytest.approx(0.5, abs=1e-3)


def test_2_of_4(done: Callable[[str], Done]) -> None:
    run = done("2:4")
    for weight in linears(run.out).values():
        assert (weight.unflatten(1, (-1, 4)).count_nonzero(2) == 2).all()
    for name in (n for n in tensors(run.out) if not n.endswith("_proj.weight")):
        assert torch.equal(tensors(run.out)[name], tensors(run.source)[name])
    assert all(site["sparsity"] == 0.5 and site["pattern"] == "2:4" for site in run.report["sites"])


def test_everything_at_once(done: Callable[[str], Done]) -> None:
    run = done("everything")
    new = config(run.out)
    assert new["num_hidden_layers"] == 3
    assert (new["num_key_value_heads"], new["num_attention_heads"], new["intermediate_size"]) == (2, 2, 86)
    for weight in linears(run.out).values():
        assert int((weight == 0).sum()) == int(weight.numel() * 0.5 + 0.5)


def test_protected_layers_are_left_alone(done: Callable[[str], Done]) -> None:
    run = done("protected")
    before, after = tensors(run.source), tensors(run.out)
    for name, tensor in after.items():
        if any(f"layers.{index}." in name for index in (0, 4)):
            assert torch.equal(tensor, before[name])
    assert config(run.out)["per_layer_config"].keys() == {"1", "2", "3"}
    assert (run.out / "modeling_secateur.py").is_file()


def test_added_biases(done: Callable[[str], Done]) -> None:
    run = done("with biases")
    new, saved = config(run.out), tensors(run.out)
    assert new["attention_bias"]
    assert new["mlp_bias"]
    assert saved["model.layers.0.mlp.down_proj.bias"].abs().max() > 0
    assert saved["model.layers.0.mlp.up_proj.bias"].abs().max() == 0


def test_without_refit_weights_are_only_left_out(done: Callable[[str], Done]) -> None:
    run = done("not refitted")
    plan = Plan.read(run.out / "plan.json")
    for index in range(5):
        keep = list(plan.entry(f"layers.{index}.channel").keep)  # type: ignore[union-attr, arg-type]
        name = f"model.layers.{index}.mlp.down_proj.weight"
        assert torch.equal(tensors(run.out)[name], tensors(run.source)[name][:, keep])
    assert all(s["error_after_refit"] == s["error_before_refit"] for s in run.report["sites"])


def test_half_precision_and_rounding(done: Callable[[str], Done]) -> None:
    run = done("fp16")
    assert {t.dtype for t in tensors(run.out).values()} == {torch.float16}
    assert config(run.out)["intermediate_size"] == 384
    assert config(run.out)["dtype"] == "float16"


def test_gpt2(done: Callable[[str], Done]) -> None:
    run = done("gpt2")
    new = config(run.out)
    assert new["auto_map"].keys() == {"AutoModel", "AutoModelForCausalLM"}
    saved = tensors(run.out)
    assert saved["transformer.h.0.attn.c_attn.weight"].shape == (96, 3 * 3 * 24)
    assert saved["transformer.h.2.mlp.c_fc.weight"].shape == (96, 288)
    assert {s["kind"] for s in run.report["sites"]} == {"kv_group", "channel"}


@pytest.mark.parametrize("name", ["channel", "query_head", "kv_group", "with biases", "gpt2"])
def test_the_refit_never_makes_it_worse(name: str, done: Callable[[str], Done]) -> None:
    for site in done(name).report["sites"]:
        assert 0 <= site["error_after_refit"] < site["error_before_refit"]
        assert site["damping"] > 0


def test_the_embedded_model(tmp_path: Path) -> None:
    if not (Path(secateur.__file__).parent / "embedded/model.safetensors").is_file():
        pytest.skip("the package was built without the embedded model")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(file.read_text(encoding="utf-8") for file in Path(__file__).parents[1].glob("*/*.py")))
    values = {"model": "embedded", "sites": "channel,query_head", "sparsity": 0.5, "method": "wanda"}
    values |= {"calibrate": text, "samples": 4, "length": 64, "evaluate": "none", "speed": False}
    report = prune(tmp_path / "out", values)
    assert report["parameters"]["after"] < report["parameters"]["before"]
    assert type(secateur.load(tmp_path / "out")).__module__.startswith("transformers.")
    assert not (embedded_path() / WORK).exists()


# ----------------------------------------------------------------------------- plans and recipes


@pytest.mark.parametrize("name", ["everything", "2:4", "gpt2"])
def test_a_replayed_plan_gives_the_same_bytes(
    name: str, done: Callable[[str], Done], shared: Path, tmp_path: Path
) -> None:
    run = done(name)
    plan = Plan.read(run.out / "plan.json")
    prune(tmp_path / "again", asked(shared, name), plan=plan)
    assert (tmp_path / "again/model.safetensors").read_bytes() == (run.out / "model.safetensors").read_bytes()
    assert (tmp_path / "again/config.json").read_bytes() == (run.out / "config.json").read_bytes()
    again = Plan.read(tmp_path / "again/plan.json")
    assert [(e.site, e.keep, e.sparsity, e.pattern) for e in again.entries] == [
        (e.site, e.keep, e.sparsity, e.pattern) for e in plan.entries
    ]
    assert again.layers == plan.layers
    report = json.loads((tmp_path / "again/report.json").read_text(encoding="utf-8"))
    assert report["command"] == "secateur prune --recipe recipe.yaml --plan plan.json --out again"


def test_the_written_recipe_repeats_the_run(done: Callable[[str], Done], tmp_path: Path) -> None:
    run = done("channel")
    secateur.prune(load_recipe(run.out / "recipe.yaml"), tmp_path / "again", quiet=True)
    assert (tmp_path / "again/model.safetensors").read_bytes() == (run.out / "model.safetensors").read_bytes()
    assert (tmp_path / "again/plan.json").read_bytes() == (run.out / "plan.json").read_bytes()


def test_an_edited_plan_is_carried_out(done: Callable[[str], Done], shared: Path, tmp_path: Path) -> None:
    text = (done("channel").out / "plan.json").read_text(encoding="utf-8")
    data = json.loads(text)
    data["entries"] = [e for e in data["entries"] if e["layer"] != 2]
    data["entries"][0]["keep"] = [5, 6, 7]
    (tmp_path / "plan.json").write_text(json.dumps(data), encoding="utf-8")
    plan = Plan.read(tmp_path / "plan.json")
    prune(tmp_path / "out", asked(shared, "channel"), plan=plan)
    saved, before = tensors(tmp_path / "out"), tensors(shared / "models" / SMALL)
    assert torch.equal(saved["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"][5:8])
    assert saved["model.layers.2.mlp.up_proj.weight"].shape == (172, 64)


def test_unequal_heads_in_a_plan_are_refused(done: Callable[[str], Done], shared: Path, tmp_path: Path) -> None:
    data = json.loads((done("query_head").out / "plan.json").read_text(encoding="utf-8"))
    data["entries"][0]["keep"] = [0, 1, 2]
    (tmp_path / "plan.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(SecateurError, match=r"layers\.0\.query_head"):
        prune(tmp_path / "out", asked(shared, "query_head"), plan=Plan.read(tmp_path / "plan.json"))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_saves_no_model(done: Callable[[str], Done], shared: Path, tmp_path: Path) -> None:
    report = prune(tmp_path / "out", asked(shared, "channel"), dry_run=True)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"plan.json", "report.json"} <= names
    assert not names & {"model.safetensors", "config.json", "tokenizer.json", WORK}
    assert report["dry_run"]
    assert report["parameters"] == done("channel").report["parameters"]
    assert (tmp_path / "out/plan.json").read_bytes() == (done("channel").out / "plan.json").read_bytes()


# ----------------------------------------------------------------------------- the report


def test_the_report_says_what_was_promised(shared: Path, tmp_path: Path) -> None:
    report = prune(tmp_path / "out", asked(shared, "channel", evaluate=None, length=128))
    assert json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8")) == report
    assert {"recipe", "calibration", "sites", "sparsity", "parameters", "evaluation", "versions", "device"} <= set(
        report
    )
    assert report["recipe"]["sparsity"] == 0.25
    assert len(report["calibration"]["data_sha256"]) == len(report["calibration"]["tokens_sha256"]) == 64
    assert report["calibration"]["general"] == SAMPLES // 8  # beside the text that was asked for
    assert report["calibration"]["tokens"] == (SAMPLES + SAMPLES // 8) * 128
    assert {"requested", "parameters", "linear_weights"} <= set(report["sparsity"])
    for site in report["sites"]:
        assert {"name", "units", "kept", "sparsity", "method", "damping", "error_after_refit"} <= set(site)
    before, after = report["evaluation"]["before"], report["evaluation"]["after"]
    for side in (before, after):
        for key in ("perplexity", "tokens", "data_sha256", "parameters", "bytes_on_disk"):
            assert side[key], key
    assert before["perplexity"] < after["perplexity"] < 3 * before["perplexity"]
    assert before["data_sha256"] == after["data_sha256"]
    assert (before["parameters"], after["parameters"]) == (260_032, report["parameters"]["after"])
    assert report["evaluation"]["kl"] > 0
    assert {"python", "torch", "transformers", "safetensors"} <= set(report["versions"])
    assert {"device", "threads", "dtype"} <= set(report["device"])
    for stage in report["stages"]:
        assert stage["seconds"] >= 0
        assert stage["peak_memory_bytes"] > 0
    assert {"prune", "save", "verify", "evaluate"} <= {stage["name"] for stage in report["stages"]}
    assert len(report["samples"]) == 2
    folder = tmp_path / "out"
    for name in ("report.html", "README.md", "recipe.yaml", "plan.json", "events.jsonl"):
        assert (folder / name).stat().st_size > 0, name
    assert "<script src" not in (folder / "report.html").read_text(encoding="utf-8")
    for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines():
        assert {"time", "event"} <= set(json.loads(line))


def test_zeros_that_were_there_before_are_not_counted_as_weights(shared: Path, tmp_path: Path) -> None:
    """stories3M came from 8-bit numbers: 26,440 of its weights are zero."""
    settings = {"sites": "weight", "sparsity": 0.5, "method": "magnitude", "evaluate": None, "length": 32}
    report = prune(tmp_path / "out", asked(shared, "fp16", **settings, round_to=1))
    for side, folder in (("before", shared / "models" / LARGE), ("after", tmp_path / "out")):
        real = sum(int(t.count_nonzero()) for t in tensors(folder).values())
        assert report["parameters"][f"nonzero_{side}"] == real
    assert report["parameters"]["nonzero_before"] == 3_121_784


@pytest.mark.parametrize(("method", "sequences"), [("magnitude", 1), ("wanda", 4)])
def test_a_method_that_looks_at_no_input_sends_one_sequence_through_the_model(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, sequences: int
) -> None:
    sent: list[int] = []
    real = one_shot.walk

    def counted(streamed: Any, tokens: Any, **given: Any) -> Any:
        sent.append(len(tokens))
        return real(streamed, tokens, **given)

    monkeypatch.setattr(one_shot, "walk", counted)
    prune(tmp_path / "out", asked(shared, "fp16", sites="weight", method=method, evaluate=None, samples=4, length=32))
    assert sent == [sequences]


def test_the_report_is_written_last(done: Callable[[str], Done]) -> None:
    written = {path.name: path.stat().st_mtime_ns for path in done("channel").out.iterdir()}
    assert max(written, key=lambda name: written[name]) == "report.json"


def test_a_run_that_fails_late_leaves_no_report(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ResourceError("no report today")

    monkeypatch.setattr(page, "write", fail)
    with pytest.raises(ResourceError, match="no report today"):
        prune(tmp_path / "out", asked(shared, "channel"))
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {WORK}


# ----------------------------------------------------------------------------- the gate


def test_the_gate_notices_a_saved_tensor_that_differs(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = one_shot.write_checkpoint

    def corrupted(folder: Path, *given: Any) -> None:
        real(folder, *given)
        saved = tensors(folder)
        key = next(n for n in sorted(saved) if n.endswith("mlp.c_proj.weight"))
        saved[key] = saved[key].flip(0)
        save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(one_shot, "write_checkpoint", corrupted)
    with pytest.raises(VerificationError, match="computes something else than the model in memory"):
        prune(tmp_path / "out", asked(shared, "gpt2"))
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {WORK}


def test_the_gate_notices_a_checkpoint_that_does_not_load(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_gate: None
) -> None:
    """In the fresh process that a run really uses."""
    real = one_shot.write_checkpoint

    def lost(folder: Path, *given: Any) -> None:
        real(folder, *given)
        (folder / "model.safetensors").write_bytes(b"nothing")

    monkeypatch.setattr(one_shot, "write_checkpoint", lost)
    with pytest.raises(VerificationError, match="doesn't load with plain transformers"):
        prune(tmp_path / "out", asked(shared, "channel"))
