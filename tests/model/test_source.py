"""What a source holds, and what of it is read: nothing is lost without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

import secateur
from secateur.config.plan import Entry
from secateur.errors import InputError
from secateur.model import source_check
from secateur.model.checkpoint import Checkpoint
from secateur.model.extras import in_layers, left_out, unused
from secateur.model.save import fill, read_block, write_block
from secateur.model.source_check import check_source
from secateur.model.streamed import StreamedModel
from tests.model import tiny
from tests.small import save_tiny

WEIGHTS = "model.safetensors"


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def resave(folder: Path, out: Path) -> Path:
    """Walked and saved, with nothing cut."""
    streamed = secateur.open_for_walk(folder)
    with secateur.save(streamed, out) as put:
        for block in secateur.walk(streamed, torch.ones(1, 4, dtype=torch.long)):
            put(block)
    return out


def logits(folder: Path) -> torch.Tensor:
    return tiny.logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tiny.tokens(1))


def test_a_head_of_its_own_is_kept_though_the_configuration_ties_it(tmp_path: Path) -> None:
    source = edit_config(save_tiny(tmp_path / "source", tie_word_embeddings=False), tie_word_embeddings=True)
    checkpoint = Checkpoint.open(source)
    assert checkpoint.config.tie_word_embeddings is False
    check_source(checkpoint)
    saved = resave(source, tmp_path / "out")
    assert json.loads((saved / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(logits(saved), logits(source))
    model = secateur.load(source)
    model.tie_weights()
    assert torch.allclose(tiny.logits(model, tiny.tokens(1)), logits(source))


def test_a_second_copy_of_a_tied_head_is_counted_once(tmp_path: Path) -> None:
    source = save_tiny(tmp_path, tie_word_embeddings=True)
    before = Checkpoint.open(source).parameters
    edit(source, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    checkpoint = Checkpoint.open(source)
    assert checkpoint.config.tie_word_embeddings
    assert checkpoint.parameters == before == AutoModelForCausalLM.from_pretrained(source).num_parameters()


@pytest.mark.parametrize("bound", [None, 1])
@pytest.mark.parametrize("case", ["llama", "gpt2", "opt-post", "qwen3-moe", "bert"])
def test_both_readings_agree(case: str, bound: int | None, tmp_path: Path) -> None:
    check_source(Checkpoint.open(tiny.save(case, tmp_path)), bound)


@pytest.mark.parametrize("bound", [None, 1])
def test_a_source_that_is_misread_is_refused_before_the_run(
    bound: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(save_tiny(tmp_path))
    right = StreamedModel.load

    def wrong(self: StreamedModel, index: int) -> torch.nn.Module:
        layer = right(self, index)
        layer.mlp.down_proj.weight.data.mul_(2)
        return layer

    monkeypatch.setattr(source_check.StreamedModel, "load", wrong)
    with pytest.raises(InputError, match="than from_pretrained loads"):
        check_source(checkpoint, bound)


def test_what_the_model_does_not_use_is_kept_or_refused(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    before = Checkpoint.open(source).parameters
    edit(source, lambda t: t.update({"score.weight": torch.ones(3, 16), "model.rotary_emb.inv_freq": torch.ones(2)}))
    assert Checkpoint.open(source).parameters == before
    saved = load_file(resave(source, tmp_path / "out") / WEIGHTS)
    assert torch.equal(saved["score.weight"], torch.ones(3, 16))
    assert "model.rotary_emb.inv_freq" not in saved
    edit(source, lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.ones(24, 16)}))
    with pytest.raises(InputError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        resave(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_single_file_beside_an_index_is_refused(tmp_path: Path) -> None:
    source = save_tiny(tmp_path)
    names = dict.fromkeys(load_file(source / WEIGHTS), "model-00001-of-00001.safetensors")
    (source / "model-00001-of-00001.safetensors").write_bytes((source / WEIGHTS).read_bytes())
    (source / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(InputError, match=r"move one of the two away"):
        Checkpoint.open(source)
    (source / WEIGHTS).unlink()
    assert Checkpoint.open(source).layers == 2


def test_what_layers_hold_too_much_is_left_out_only_when_told(quick: None, tmp_path: Path) -> None:
    source = edit_config(save_tiny(tmp_path / "source"), _attn_implementation="flash_attention_2")
    name, out = "model.layers.7.mlp.up_proj.weight", tmp_path / "out"
    edit(source, lambda t: t.update({name: torch.ones(24, 16)}))
    said = f"not taken along, as the model doesn't use them: tensors {name}"
    assert secateur.inspect(source)["left_out"] == [said]
    (tmp_path / "text.jsonl").write_text(json.dumps({"input_ids": [i % 200 for i in range(64)]}))
    asked = {"model": str(source), "sites": "channel", "sparsity": 0.5, "calibrate": str(tmp_path / "text.jsonl")}
    asked |= {"samples": 4, "length": 16, "evaluate": "none", "speed": False}
    with pytest.raises(InputError, match=rf"{name}.*prune without it by --allow-unused-tensors$"):
        secateur.prune(secateur.make_recipe(asked), out, quiet=True)
    assert not out.exists()
    report = secateur.prune(secateur.make_recipe(asked | {"allow_unused_tensors": True}), out, quiet=True)
    assert said in report["warnings"]
    assert name not in load_file(out / WEIGHTS)
    assert "not taken along from config.json: _attn_implementation flash_attention_2" in report["warnings"]


def test_what_its_class_ignores_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers behind the last one, which predict further tokens: transformers leaves them out, and a result too."""
    folder = edit(
        save_tiny(tmp_path / "model"), lambda t: t.update({"model.layers.61.eh_proj.weight": torch.ones(4, 8)})
    )
    assert in_layers(Checkpoint.open(folder)) == ["model.layers.61.eh_proj.weight"]
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.61.*"])
    checkpoint = Checkpoint.open(folder)
    assert (unused(checkpoint), in_layers(checkpoint)) == ([], [])
    assert left_out(checkpoint) == [
        "not taken along, as its class doesn't load them: tensors model.layers.61.eh_proj.weight"
    ]
    assert left_out(Checkpoint.open(save_tiny(tmp_path / "whole"))) == []


def test_buffers_of_a_layer_are_written(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_tiny(tmp_path / "source"))
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    layer, template = streamed.load(0), streamed.template(0)
    layer.register_buffer("correction", torch.tensor([1.0, 2.0]))
    template.register_buffer("correction", torch.zeros(2))
    write_block(tmp_path, layer, checkpoint, 0)
    assert torch.equal(fill(template, read_block(tmp_path, 0), torch.float32).correction, layer.correction)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
def test_weights_that_are_no_floats_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    source = edit(save_tiny(tmp_path), lambda t: t.update({name: t[name].to(dtype)}))
    with pytest.raises(InputError, match=name):
        Checkpoint.open(source)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_what_is_no_number_is_named_when_it_is_read(name: str, value: float, tmp_path: Path) -> None:
    source = edit(save_tiny(tmp_path), lambda t: t[name].view(-1)[3].fill_(value))
    with pytest.raises(InputError, match=name):
        check_source(Checkpoint.open(source))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}},
    ],
)
def test_old_readers_find_theta(changes: dict[str, Any], tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", **changes)
    saved = json.loads((resave(source, tmp_path / "out") / "config.json").read_text())
    assert saved["rope_theta"] == 5e5
    assert (saved["rope_scaling"] or {}).get("factor") == changes["rope_parameters"].get("factor")
    assert saved["torch_dtype"] == saved["dtype"]
    again = AutoConfig.from_pretrained(tmp_path / "out")
    assert again.rope_parameters == AutoConfig.from_pretrained(source).rope_parameters


@pytest.mark.parametrize(("site", "kind"), [("layers.0.channel", "weight"), ("layers.0.mlp.up_proj", "channel")])
def test_a_plan_entry_of_another_kind_than_its_site_is_refused(site: str, kind: str) -> None:
    with pytest.raises(InputError, match="contradicts"):
        Entry(site, kind, 0, 24, 0.5, "wanda", keep=(0,)).check()


@pytest.mark.parametrize("how", ["ghost", "missing", "elsewhere"])
@pytest.mark.parametrize("read", [Checkpoint.open, secateur.load])
def test_an_index_must_say_what_the_shards_hold(read: Callable[[Path], Any], how: str, tmp_path: Path) -> None:
    """For every command: each would otherwise measure another model."""
    source = tiny.save("llama", tmp_path, max_shard_size="20KB")
    file = source / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    names = index["weight_map"]
    first = "model.layers.0.mlp.up_proj.weight"
    if how == "ghost":
        names["model.layers.9.mlp.up_proj.weight"] = names[first]
    elif how == "missing":
        del names[first]
    else:
        names[first] = next(shard for shard in names.values() if shard != names[first])
    file.write_text(json.dumps(index))
    with pytest.raises(InputError, match="the index"):
        read(source)
