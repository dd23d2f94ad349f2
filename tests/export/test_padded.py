"""Uneven results as stock classes: the same function, under a class that knows nothing of Secateur."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import secateur
from secateur.errors import InputError, UnsupportedModelError
from secateur.export.export import name_of
from secateur.export.growing import grow_channels, grow_heads
from secateur.model.sites import head_counts
from secateur.pipeline.results.clients import ways_of
from tests.export import cases
from tests.model import tiny
from tests.model.detection import cases as detected
from tests.model.test_surgery_families import anatomy
from tests.model.test_uneven import PLAN, prune, save_uneven

PADDED = secateur.make_export({"to": "padded"})


@pytest.mark.parametrize("case", tiny.CASES)
def test_a_padded_result_is_the_stock_class_and_the_same_function(case: str, tmp_path: Path) -> None:
    model = tiny.build(case)
    prune(model, PLAN)
    folder = save_uneven(model, tmp_path / "uneven")
    found = secateur.export(folder, tmp_path / "padded", PADDED, quiet=True)
    config = json.loads((tmp_path / "padded" / "config.json").read_text(encoding="utf-8"))
    assert not {"auto_map", "per_layer_config", "secateur_skip", "secateur_narrow"} & set(config)
    assert not (tmp_path / "padded" / "modeling_secateur.py").exists()
    auto = AutoModelForMaskedLM if case == "bert" else AutoModelForCausalLM
    stock = auto.from_pretrained(tmp_path / "padded", dtype=torch.float32).eval()
    assert type(stock).__name__ == found["architecture"] == config["architectures"][0]
    assert found["parameters_after"] == stock.num_parameters() > found["parameters_before"]
    ids = tiny.tokens(2)
    torch.testing.assert_close(tiny.logits(stock, ids), tiny.logits(model, ids), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("case", ["llama", "phi3", "neox", "gpt2-inner", "mixtral", "olmo2"])
def test_growing_adds_zeros_where_nothing_reads_them(case: str) -> None:
    model, grown = tiny.build(case), tiny.build(case)
    family, head_dim, layers = anatomy(grown)
    for index, layer in enumerate(layers):
        heads, kv_heads = head_counts(layer, family, head_dim)
        if family.heads == "any":
            grow_heads(layer, family, index, head_dim, (heads // kv_heads + 1) * (kv_heads + 2), kv_heads + 2)
            assert head_counts(layer, family, head_dim) == ((heads // kv_heads + 1) * (kv_heads + 2), kv_heads + 2)
        grow_channels(layer, family, index, head_dim, 64)
    ids = tiny.tokens(2)
    torch.testing.assert_close(tiny.logits(grown, ids), tiny.logits(model, ids), atol=2e-5, rtol=2e-5)
    assert sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in model.parameters())


def test_channels_are_filled_up_to_a_multiple(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "dense")
    told = secateur.make_export({"to": "padded", "multiple": 32})
    (folder / "README.md").write_text("---\ntags: [a]\n---\n\n# Small\n\nText.\n", encoding="utf-8")
    secateur.export(folder, tmp_path / "padded", told, quiet=True)
    config = json.loads((tmp_path / "padded" / "config.json").read_text(encoding="utf-8"))
    assert config["intermediate_size"] == 64
    card = (tmp_path / "padded" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\ntags: [a]\n---\n\n> Filled up with zeros")
    assert card.endswith("\n# Small\n\nText.\n")


def test_what_can_not_be_padded_is_refused(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "dense")
    with pytest.raises(InputError, match="all layers have the same widths already"):
        secateur.export(folder, tmp_path / "out", PADDED, quiet=True)
    assert not (tmp_path / "out").exists()
    model = tiny.build("mixtral")
    prune(model, (("expert",), (), (), ()))
    folder = save_uneven(model, tmp_path / "experts")
    with pytest.raises(UnsupportedModelError, match="different numbers of experts"):
        secateur.export(folder, tmp_path / "out", PADDED, quiet=True)


def test_detected_architectures_are_refused_in_a_line(tmp_path: Path) -> None:
    folder = cases.with_tokenizer(detected.save("vision", tmp_path / "model"))
    assert ways_of(folder) == []
    for to in ("padded", "gguf", "onnx", "openvino"):
        with pytest.raises(UnsupportedModelError, match=f"was detected, and of those no {to} is made") as refused:
            secateur.export(folder, tmp_path / "out", secateur.make_export({"to": to}), quiet=True)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_an_encoder_is_padded_and_nothing_else(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "model")
    for to in ("gguf", "onnx", "openvino"):
        with pytest.raises(UnsupportedModelError, match="predicts no next token; nothing to export"):
            secateur.export(folder, tmp_path / "out", secateur.make_export({"to": to}), quiet=True)
    told = secateur.make_export({"to": "padded", "multiple": 16})
    assert secateur.export(folder, tmp_path / "out", told, quiet=True)["architecture"] == "BertForMaskedLM"


@pytest.mark.parametrize(
    ("model", "called"),
    [("models/small.gguf", "small"), ("models", "models"), ("embedded", "embedded"), ("org/name@main", "name")],
)
def test_files_are_named_after_the_model(
    model: str, called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.gguf").touch()
    found = {"models": tmp_path / "models", "embedded": tmp_path / "embedded"}.get(model, tmp_path / "0f3a" / "cache")
    assert name_of(model, found) == called
