"""The model inside the package: loads with nothing of ours, small, and trained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from secateur.data.embedded import embedded_path
from secateur.data.stdlib import documents
from secateur.errors import ResourceError

# Held-out bits per byte of the sample below: 1.91 and 1.84 under Python 3.11; code is 2.17 under 3.13, whose
# files differ. A uniform guess over the vocabulary is above 3.4. The card has the figures of the whole text.
BOUND = {"prose": 2.1, "code": 2.4}


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(embedded_path())


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_path())


def test_stock_llama_in_half_precision(model):
    assert type(model) is LlamaForCausalLM
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert 2e6 <= sum(p.numel() for p in model.parameters()) <= 4e6


def test_weights_are_small_and_nothing_else_lies_beside_them():
    folder = embedded_path()
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    with safe_open(folder / "model.safetensors", framework="pt") as stored:
        assert all(stored.get_slice(name).get_dtype() == "F16" for name in stored.keys())  # noqa: SIM118
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "loss_curve.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_kv_groups_can_be_cut_one_by_one(model):
    config = model.config
    group = config.num_attention_heads // config.num_key_value_heads
    for kept in range(1, config.num_key_value_heads + 1):
        assert config.hidden_size % (kept * group) == 0


@pytest.mark.parametrize("text", ["def f(x):\n    return x\n", " leading", "héllo \U0001f333\t\r\n", "<s> as text"])
def test_tokenizer_puts_bos_first_and_loses_nothing(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(ids[1:]) == text


def test_tokenizer_agrees_with_the_config(tokenizer, model):
    assert len(tokenizer) == model.config.vocab_size == 2048
    assert model.config.bos_token_id == tokenizer.bos_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id is not None


@pytest.mark.parametrize("domain", ["prose", "code"])
def test_it_predicts_text_that_it_never_saw(tokenizer, domain):
    model = AutoModelForCausalLM.from_pretrained(embedded_path(), dtype=torch.float32)
    text = "\n".join(document[:700] for document in documents(domain, "held_out")[:12:2])
    ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1]
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    bits = nats / math.log(2) / len(tokenizer.decode(ids[0, 1:]).encode())
    assert bits < BOUND[domain]


def test_card_and_curve_say_what_was_measured():
    folder = embedded_path()
    record = json.loads((folder / "loss_curve.json").read_text())
    bits = record["held_out_bits_per_byte"]
    card = (folder / "README.md").read_text()
    for name in ("prose_first", "code_first", "both_first", "prose_whole", "code_whole", "both_whole"):
        assert f"{bits[name]:.3f}" in card
    assert record["curve"][-1]["loss"] < record["curve"][0]["loss"]


def test_a_package_without_its_data_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.data.embedded.files", lambda package: Path(tmp_path))
    with pytest.raises(ResourceError, match="no embedded model in"):
        embedded_path()
