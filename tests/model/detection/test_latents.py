"""Ranks of latent attention: found by their norm, taken out exactly, and refitted with what the norm does then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import secateur
from secateur.analysis.explain import explain
from secateur.analysis.inspect import inspect
from secateur.calibration.walk import walk
from secateur.config.recipe import make_recipe
from secateur.cut import units
from secateur.cut.normed import shrinkage
from secateur.cut.units import UnitRules, cut_units
from secateur.errors import InputError
from secateur.methods import METHODS
from secateur.model.checkpoint import Checkpoint
from secateur.model.clients import refusal
from secateur.model.detection.cache import detected
from secateur.model.round_trip import load_as_user
from secateur.model.sites import sites_of
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import zero
from tests.model import tiny
from tests.model.detection.cases import CASES, save
from tests.small import byte_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        made = save("latent", tmp_path_factory.mktemp("latent"), vocab_size=259)
        byte_tokenizer().save_pretrained(made)
        yield made


def told(folder: Path, tmp_path: Path, **changes: Any) -> Any:
    rows = [{"text": f"the thing number {i} thought that {i * i * 31 % 9973} was then; " * 3} for i in range(40)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own: dict[str, Any] = {"model": folder, "sites": "latent", "sparsity": 0.5, "calibrate": tmp_path / "text.jsonl"}
    own |= {"samples": 6, "length": 24, "evaluate": "none", "speed": False, "allow_little_text": True}
    return make_recipe({**own, "dtype": "float32", "quality": "fast", **changes})


def test_a_layer_has_a_latent_of_keys_and_values_and_one_of_queries(folder: Path) -> None:
    sites = [s for s in Checkpoint.open(folder).sites[0] if s.kind == "latent"]
    assert [(s.name, s.units, s.consumer) for s in sites] == [
        ("layers.0.latent[self_attn.q_b_proj]", 12, "self_attn.q_b_proj"),
        ("layers.0.latent[self_attn.kv_b_proj]", 10, "self_attn.kv_b_proj"),
    ]


def test_inspect_counts_what_latent_attention_keeps_of_a_token(folder: Path) -> None:
    """The ranks and the rotary entries of one key, not a key and a value of every head."""
    found = inspect(folder)
    assert found["kv_cache_bytes_per_token"] == 2 * tiny.LAYERS * (10 + 4)
    assert next(row["legal"] for row in found["sites"] if row["kind"] == "latent") == "1 to 12"


def test_a_plan_of_ranks_computes_what_zeros_do_and_says_so_in_the_configuration(
    folder: Path, tmp_path: Path
) -> None:
    report = secateur.prune(told(folder, tmp_path, refit=False, explain=False), tmp_path / "out", quiet=True)
    assert report["result"]["loader"] == "transformers"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["kv_lora_rank"], config["q_lora_rank"]) == (5, 6)
    plan = {e["site"]: e["keep"] for e in json.loads((tmp_path / "out" / "plan.json").read_text())["entries"]}
    checkpoint, zeroed = Checkpoint.open(folder), load_as_user(folder)[0]
    for index, layer in enumerate(zeroed.get_submodule(checkpoint.family.layers)):
        for site in (s for s in checkpoint.sites[index] if s.kind == "latent"):
            zero(layer, site, torch.isin(torch.arange(site.units), torch.tensor(plan[site.name])))
    want, got = (tiny.logits(m, tiny.tokens(2)) for m in (zeroed, load_as_user(tmp_path / "out")[0]))
    assert float((got - want).abs().max()) < 1e-5 * float(want.abs().max())


def test_layers_may_differ_and_steps_and_heads_go_beside_them(folder: Path, tmp_path: Path) -> None:
    recipe = told(folder, tmp_path, sites="latent,kv_group", steps=2, allocate="global", sparsity=0.4)
    report = secateur.prune(recipe, tmp_path / "out", quiet=True)  # the gate compares what loads
    assert report["result"]["loader"] != "transformers"
    evidence = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert any(site["kind"] == "latent" for site in evidence["sites"])
    asked: dict[str, Any] = {"layer": 0, "unit": 0}
    with pytest.raises(InputError, match=r"latent\[self_attn.q_b_proj\], latent\[self_attn.kv_b_proj\]"):
        explain(tmp_path / "out", **asked, site="latent")  # two of a kind in one layer are told apart
    told_apart = explain(tmp_path / "out", **asked, site="latent[self_attn.kv_b_proj]")["unit"]
    assert told_apart is not None
    assert told_apart["site"] == "layers.0.latent[self_attn.kv_b_proj]"


def test_a_refit_makes_up_for_what_the_norm_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer ranks the mean square is smaller, so what stays is larger than in the dense model."""
    checkpoint, errors = Checkpoint.open(folder), []
    rules = UnitRules(METHODS["obs"], lambda site: site.units // 2, lambda site: None, True, frozenset())
    for corrected in (True, False):
        if not corrected:
            monkeypatch.setattr(units, "shrinkage", lambda *_: 1.0)
        streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
        blocks = walk(streamed, tiny.tokens(8))
        block = next(blocks)
        (own,) = (s for s in sites_of(block.layer, checkpoint.family, 0, 0) if s.consumer.endswith("kv_b_proj"))
        whole = block.moments([own.consumer], frozenset({"gram"}))[own.consumer]
        energy = whole.second_moment / block.layer.get_parameter("self_attn.kv_a_layernorm.weight").data.square()
        wanted = float((energy[:5].sum() / energy.sum()).sqrt())
        assert shrinkage(block, own, whole, torch.arange(own.units) < 5) == pytest.approx(wanted)
        before = _output(block, own.consumer)
        cut_units(block, frozenset({"latent"}), rules)
        assert block.layer.get_parameter(f"{own.consumer}.weight").shape[1] == 5
        errors.append(float((_output(block, own.consumer) - before).detach().square().mean()))
    assert errors[0] < 0.9 * errors[1]


def _output(block: Any, name: str) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = block.layer.get_submodule(name).register_forward_hook(lambda _m, _a, out: seen.append(out))
    block.stream.forward(block.layer, block.index, 0, block.streamed.device)
    handle.remove()
    return seen[0]


def test_an_indexer_that_reads_the_same_latent_is_cut_and_refitted_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = {**CASES["latent"], "model_type": "deepseek_v32", "index_head_dim": 8, "index_n_heads": 2, "index_topk": 4}
    found = detected(AutoConfig.for_model(own.pop("model_type"), **own))
    (queries,) = (u for u in found.anatomies[0].units if u.label == "self_attn.q_b_proj")
    assert "self_attn.indexer.wq_b.weight" in {owned.parameter for owned in queries.owned}
    assert ("self_attn.indexer", "q_lora_rank") in {(size.module, size.name) for size in queries.sizes}
    assert "latent" in found.stock


def test_a_program_with_kernels_for_published_ranks_refuses_others() -> None:
    assert "leave out site latent" in str(refusal("vllm", "deepseek_v3", latents=True))
    assert refusal("transformers", "deepseek_v3", latents=True) is None
