from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from secateur.data.documents import load_corpus
from secateur.data.sources import split_specs
from secateur.errors import InputError
from secateur.evaluation import evaluate
from secateur.evaluation.loading import load
from tests.small import save_tiny

RATIOS = ("perplexity", "bits_per_byte", "parameters", "nonzero_parameters", "bytes_on_disk")
RATIOS += ("prefill_tokens_per_s", "decode_tokens_per_s", "peak_memory_bytes")


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "the first one"}\n{"text": "the other"}\n')
    return str(path)


def test_every_promised_key_is_there(tmp_path: Path, data: str) -> None:
    model, other = save_tiny(tmp_path / "m"), save_tiny(tmp_path / "o", seed=1)
    found = evaluate(model, data, against=other, device="cpu")
    json.dumps(found, allow_nan=False)
    assert found["data"] == data
    assert found["data_sha256"] == load_corpus(data).sha256
    assert found["tokens"] == len("the first one" + "the other") - 3  # "th" is one token
    assert found["length"] == 32
    assert (found["device"], found["dtype"], found["threads"]) == ("cpu", "float32", torch.get_num_threads())
    assert found["bytes_on_disk"] == (model / "model.safetensors").stat().st_size
    assert found["kl"] > 0
    own_keys = set(found) - {"kl", "reference", "ratios", "notes"}
    assert set(found["reference"]) == own_keys
    assert set(found["ratios"]) == set(RATIOS)
    assert found["ratios"]["parameters"] == 1
    for key in RATIOS:
        assert found[key] > 0
        assert found["ratios"][key] == pytest.approx(found[key] / found["reference"][key])


def test_parameters_are_counted_once_and_zeros_apart(tmp_path: Path, data: str) -> None:
    for tied in (True, False):
        folder = save_tiny(tmp_path / str(tied), tie_word_embeddings=tied)
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"][:5] = 0
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        found = evaluate(folder, data, device="cpu", speed=False)
        assert found["parameters"] == sum(weight.numel() for weight in weights.values())
        assert found["parameters"] - found["nonzero_parameters"] == 5 * 16


def test_without_speed_its_keys_are_null(tmp_path: Path, data: str) -> None:
    model = save_tiny(tmp_path / "m")
    found = evaluate(model, data, against=model, device="cpu", speed=False)
    assert found["decode_tokens_per_s"] is None
    assert found["reference"]["peak_memory_bytes"] is None
    assert found["ratios"]["decode_tokens_per_s"] is None
    assert found["kl"] == 0


def test_several_sets(tmp_path: Path, data: str) -> None:
    (tmp_path / "b.txt").write_text("one running text, longer than one window of the model's context")
    second = str(tmp_path / "b.txt")
    found = evaluate(save_tiny(tmp_path / "m"), f"{data}, {second}", device="cpu", speed=False)
    assert list(found["sets"]) == [data, second]
    assert found["perplexity"] == found["sets"][data]["perplexity"] != found["sets"][second]["perplexity"]
    assert found["sets"][second]["windows"] == 2
    assert found["sets"][second]["data_sha256"] == load_corpus(second).sha256


def test_names_of_several_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_specs("a, b,a,") == ["a", "b"]
    (tmp_path / "a,b.txt").write_text("x")
    assert split_specs("a,b.txt") == ["a,b.txt"]
    with pytest.raises(InputError, match="--data is empty"):
        split_specs(" , ")


def test_models_with_other_tokens_are_compared_by_bytes(tmp_path: Path, data: str) -> None:
    model, other = save_tiny(tmp_path / "m"), save_tiny(tmp_path / "o", vocab=300)
    found = evaluate(model, data, against=other, device="cpu", speed=False)
    assert found["kl"] is None
    assert "no KL, compare bits per byte" in found["notes"][0]
    assert found["ratios"]["bits_per_byte"] > 0


def test_the_shorter_context_holds_for_both(tmp_path: Path, data: str) -> None:
    model, other = save_tiny(tmp_path / "m"), save_tiny(tmp_path / "o", context=8)
    found = evaluate(model, data, against=other, device="cpu", speed=False)
    assert found["length"] == found["reference"]["length"] == 8
    assert found["tokens"] == found["reference"]["tokens"] == 14


def test_token_ids_need_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"input_ids": [1, 2, 3]}')
    model = save_tiny(tmp_path / "m", tokenizer=False)
    found = evaluate(model, str(tmp_path / "a.jsonl"), device="cpu", speed=False)
    assert (found["tokens"], found["bits_per_byte"]) == (2, None)


@pytest.mark.parametrize(
    ("name", "stored"), [("auto", torch.float32), ("fp16", torch.float16), ("bfloat16", torch.bfloat16)]
)
def test_dtypes(tmp_path: Path, name: str, stored: torch.dtype) -> None:
    loaded = load(save_tiny(tmp_path / "m"), "cpu", name)
    assert loaded.dtype == next(loaded.model.parameters()).dtype == stored


def break_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path: Path, data: str) -> None:
    good = save_tiny(tmp_path / "m")

    def refused(match: str, **how: Any) -> None:
        with pytest.raises(InputError, match=match) as caught:
            evaluate(**{"model_dir": good, "data": data, "device": "cpu", "speed": False, **how})
        assert "\n" not in str(caught.value)

    refused("no such folder", model_dir=tmp_path / "nope")
    refused("--device quantum is unknown", device="quantum")
    refused("--device cuda:99", device="cuda:99")
    refused("--dtype int3 is unknown", dtype="int3")
    refused("--length 99 is out of range", length=99)
    refused("does not exist", data="nope.jsonl")

    cut = save_tiny(tmp_path / "cut")
    raw = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    refused("model.safetensors: is damaged or cut short", model_dir=cut)

    deeper = save_tiny(tmp_path / "deeper")
    break_config(deeper, num_hidden_layers=3)
    refused(r"tensor model\.layers\.2\.\S+ is missing", model_dir=deeper)

    wide = save_tiny(tmp_path / "wide")
    break_config(wide, intermediate_size=32)
    refused("wide", model_dir=wide)

    bare = save_tiny(tmp_path / "bare", tokenizer=False)
    refused("the model has no tokenizer", model_dir=bare)
    (bare / "tokenizer.json").write_text("{")
    refused(r"tokenizer\.json: is not valid JSON", model_dir=bare)


def test_an_encoder_is_refused_before_it_is_loaded(tmp_path: Path, data: str) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="a bert model is not a causal language model"):
        evaluate(tmp_path / "bert", data, device="cpu", speed=False)


def test_a_pruned_real_model_against_its_original(shared: Path, tmp_path: Path) -> None:
    original = shared / "models/stories260K"
    pruned = tmp_path / "pruned"
    pruned.mkdir()
    for file in original.iterdir():
        (pruned / file.name).write_bytes(file.read_bytes())
    weights = load_file(pruned / "model.safetensors")
    for name, weight in weights.items():
        if "down_proj" in name:
            weight[weight.abs() < weight.abs().median()] = 0
    save_file(weights, pruned / "model.safetensors", {"format": "pt"})
    few = tmp_path / "few.jsonl"
    lines = (shared / "data/tinystories/eval.jsonl").read_text().splitlines()
    few.write_text("\n".join(lines[:20]))
    found = evaluate(pruned, str(few), against=original, device="cpu", speed=False)
    assert found["reference"]["perplexity"] < found["perplexity"] < 3 * found["reference"]["perplexity"]
    assert 0.01 < found["kl"] < 1
    assert 0.8 < found["ratios"]["nonzero_parameters"] < 0.95
