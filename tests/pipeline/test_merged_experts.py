"""Whole runs that merge experts: what is saved and loads, what is said of it, what goes on, what is refused."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur.cli import app as cli
from secateur.config.plan import Plan
from secateur.config.recipe import load_recipe, make_recipe
from secateur.cut.merging import Merge
from secateur.cut.units import UnitCut
from secateur.errors import InputError
from secateur.model.sites import Site
from secateur.pipeline import one_shot
from secateur.pipeline.lineage import joined
from secateur.report.terminal.explained import print_explanation
from tests.model.mixture import EXPERTS, upcycled
from tests.small import byte_tokenizer, tiny_llama

LAYERS = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a mixture of related experts, and text."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("source")
    dense = tiny_llama(context=64, num_hidden_layers=LAYERS, initializer_range=0.3)
    upcycled(dense, 0.3).save_pretrained(folder / "mixture")
    byte_tokenizer().save_pretrained(folder / "mixture")
    rows = [{"text": f"the thing number {i} thought that {i * i * 31 % 9973} was then; " * 3} for i in range(100)]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def asked(source: Path, **changes: Any) -> dict[str, Any]:
    given = {"model": str(source / "mixture"), "calibrate": str(source / "text.jsonl"), "samples": 6, "length": 32}
    given |= {"sites": "expert", "sparsity": 0.5, "merge_experts": True, "evaluate": "none", "speed": False}
    return {**given, **changes}


def prune(out: Path, values: dict[str, Any], **how: Any) -> dict[str, Any]:
    return secateur.prune(make_recipe(values), out, quiet=True, **how)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_experts_are_merged_from_the_command_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By plain transformers the saved folder is what our own loading gives, and what the plan says by hand."""
    words = [
        f"--{key}={value}" for key, value in asked(source).items() if key not in ("model", "speed", "merge_experts")
    ]
    command = ["prune", str(source / "mixture"), *words, "--no-speed", "--json"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--merge-experts", "--out", str(tmp_path / "out")])
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    assert report["result"]["loader"] == "transformers"
    assert load_recipe(tmp_path / "out" / "recipe.yaml").merge_experts
    plan = Plan.read(tmp_path / "out" / "plan.json")
    model = AutoModelForCausalLM.from_pretrained(source / "mixture", dtype=torch.float32).eval()
    got, changed = weights(tmp_path / "out"), 0
    for site, entry in zip(report["sites"], plan.entries, strict=True):
        assert entry.keep is not None
        assert [merge["unit"] for merge in site["merged"]] == sorted(set(range(EXPERTS)) - set(entry.keep))
        assert 0 <= site["error_after_refit"] <= site["error_before_refit"] < 1
        mlp = model.model.layers[entry.layer].mlp
        taken = {merge["into"] for merge in site["merged"] if merge["taken"]}
        for place, unit in enumerate(entry.keep):
            key = f"model.layers.{entry.layer}.block_sparse_moe"
            stored = torch.stack([got[f"{key}.experts.{place}.{part}.weight"] for part in ("w1", "w3")])
            own = mlp.experts.gate_up_proj[unit].view(2, -1, stored.shape[2])
            assert torch.equal(stored, own) == (unit not in taken)
            assert torch.equal(got[f"{key}.gate.weight"][place], mlp.gate.weight[unit])
            changed += unit in taken
    assert changed
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, trust_remote_code=False)
    assert plain.config.num_local_experts == 2
    with torch.no_grad():
        loaded = plain(input_ids=torch.arange(40).view(2, 20)).logits
        want = secateur.load(tmp_path / "out", "cpu", "float32")(input_ids=torch.arange(40).view(2, 20)).logits
    torch.testing.assert_close(loaded, want)


def test_explain_says_what_became_of_each(source: Path, tmp_path: Path) -> None:
    report = prune(tmp_path / "out", asked(source), dry_run=True)
    merges = [site["merged"] for site in report["sites"]]
    shown = io.StringIO()
    print_explanation(secateur.explain(tmp_path / "out"), Console(file=shown, width=160))
    rows = [line.split() for line in shown.getvalue().splitlines() if line.startswith("layers.")]
    assert [row[-1] for row in rows] == [str(sum(merge["taken"] for merge in own)) for own in merges]
    for layer, own in enumerate(merges):
        shown = io.StringIO()
        print_explanation(secateur.explain(tmp_path / "out", layer=layer), Console(file=shown, width=160))
        rows = [line.split() for line in shown.getvalue().splitlines()[-len(own) :]]
        assert [row[:2] for row in rows] == [[str(merge["unit"]), str(merge["into"])] for merge in own]
        assert [row[3] for row in rows] == ["merged" if merge["taken"] else "removed:" for merge in own]


def test_an_interrupted_run_goes_on_and_a_plan_is_replayed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prune(tmp_path / "whole", asked(source))
    assert any(merge["taken"] for site in whole["sites"] for merge in site["merged"])
    cut, seen = one_shot.cut_block, []

    def stopped(block: Any, *rest: Any) -> Any:
        seen.append(block.index)
        if seen == [0, 1, 2]:
            raise InputError("stopped")
        return cut(block, *rest)

    monkeypatch.setattr(one_shot, "cut_block", stopped)
    with pytest.raises(InputError, match="stopped"):
        prune(tmp_path / "out", asked(source))
    resumed = prune(tmp_path / "out", asked(source), resume=True)
    assert seen == [0, 1, 2, 2]
    assert resumed["sites"] == whole["sites"]
    assert same(tmp_path / "whole", tmp_path / "out")
    plan = Plan.read(tmp_path / "whole" / "plan.json")
    again = asked(source, method=("random",), general_text=0.125)  # as the preset has it, which a method turns off
    replayed = prune(tmp_path / "replayed", again, plan=plan)
    assert same(tmp_path / "whole", tmp_path / "replayed")
    assert [site["merged"] for site in replayed["sites"]] == [site["merged"] for site in whole["sites"]]
    removed = prune(tmp_path / "removed", asked(source, merge_experts=False), plan=plan)
    assert not same(tmp_path / "whole", tmp_path / "removed")
    assert all("merged" not in site and site["error_after_refit"] is None for site in removed["sites"])


def test_steps_tell_of_the_original_experts(source: Path, tmp_path: Path) -> None:
    report = prune(tmp_path / "out", asked(source, steps=2, schedule="linear"))
    for site, entry in zip(report["sites"], Plan.read(tmp_path / "out" / "plan.json").entries, strict=True):
        gone = sorted(set(range(EXPERTS)) - set(entry.keep or ()))
        assert [merge["unit"] for merge in site["merged"]] == gone
        assert len(gone) == 2
        for merge in site["merged"]:
            assert merge["into"] in (entry.keep or ()) or merge["into"] in gone


def test_two_cuts_of_experts_are_told_as_one() -> None:
    site = Site("expert", 0, 4, (), "", 1, 1)
    first = UnitCut(site, (0, 2, 3), None, 0.2, 0.1, None, merged=(Merge(1, 2, 0.5, True),))
    then = UnitCut(site, (0, 2), None, 0.3, 0.2, None, merged=(Merge(1, 2, 0.25, False),))
    found = joined(first, then)
    assert found.merged == (Merge(1, 2, 0.5, True), Merge(2, 3, 0.25, False))
    assert (found.keep, found.error_masked, found.error) == ((0, 3), 0.3, 0.2)


WITH: dict[str, dict[str, Any]] = {
    "what is inside": {"sites": "expert,channel,weight", "quality": "balanced", "sparsity": 0.5},
    "tuned": {"reconstruct": 30, "samples": 24},
    "unevenly": {"allocate": "sensitivity", "sparsity": 0.25},
}


@pytest.mark.parametrize("name", WITH)
def test_experts_are_merged_with_everything_else(name: str, source: Path, tmp_path: Path) -> None:
    report = prune(tmp_path / "out", asked(source, **WITH[name]))
    merges = [merge for site in report["sites"] for merge in site.get("merged", ())]
    assert merges
    assert any(merge["taken"] for merge in merges) or name == "unevenly"
    assert all(s["error_after_refit"] <= s["error_before_refit"] for s in report["sites"] if "merged" in s)
    saved = weights(tmp_path / "out")
    assert sum(t.numel() for t in saved.values()) == report["parameters"]["after"]
    assert all(bool(t.isfinite().all()) for t in saved.values())


def test_without_experts_it_is_refused(source: Path) -> None:
    said = r"^merge_experts is for experts, but sites are channel; add --sites expert$"
    with pytest.raises(InputError, match=said):
        make_recipe(asked(source, sites="channel"))


def test_a_real_model_gets_back_what_noise_took(shared: Path, tmp_path: Path) -> None:
    """Experts that are one real FFN, its channels in four orders, each with noise of its own: the mean of two has
    less of it than one, if the channels are put in order."""
    folder = shared / "models" / "stories260K"
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    upcycled(copy.deepcopy(dense), 0.4).save_pretrained(tmp_path / "mixture")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "mixture")
    stories = (shared / "data" / "tinystories" / "eval.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    (tmp_path / "eval.jsonl").write_text("\n".join(stories), encoding="utf-8")
    given = {"model": str(tmp_path / "mixture"), "sites": "expert", "sparsity": 0.5, "speed": False, "length": 128}
    given |= {"calibrate": str(shared / "data" / "tinystories" / "calibrate.jsonl"), "samples": 16}
    given |= {"evaluate": str(tmp_path / "eval.jsonl")}
    found = {}
    for merge in (False, True):
        report = prune(tmp_path / str(merge), {**given, "merge_experts": merge})
        found[merge] = report["evaluation"]["after"]["perplexity"]
    assert found[True] < 0.97 * found[False]
