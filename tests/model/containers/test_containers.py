"""Quantised checkpoints as models: each number as two loops compute it, a run from end to end, hostile files."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM

import secateur
from secateur.config.recipe import make_recipe
from secateur.errors import InputError, ResourceError, SecateurError, UnsupportedModelError
from secateur.model.checkpoint import Checkpoint
from secateur.model.containers import folder as containers
from secateur.model.containers.folder import plain_folder
from secateur.model.containers.gptq import dequantise
from secateur.model.containers.packing import unpack
from secateur.model.containers.readers import READERS
from secateur.model.containers.tensors import Tensors
from secateur.model.source_check import check_source
from tests.cases import case
from tests.model.containers.formats import FORMATS, gptq, mxfp4, quantised_llama, rewrite, words

ROUNDED = 2.0**-8  # of bf16
BY_TRANSFORMERS = ("fp8 blocks",)  # what it loads on any machine, without a package more


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_as_two_loops_read_it(name: str, tmp_path: Path) -> None:
    meant = quantised_llama(tmp_path / "stored", name)
    tensors = Tensors(tmp_path / "stored")
    told = FORMATS[name].config
    plans = list(READERS[told["quant_method"]].plan(tensors, told))
    assert len(plans) == 14
    for plan in plans:
        torch.testing.assert_close(plan.make().double(), meant[plan.name], rtol=1e-6, atol=1e-7)
        assert plan.shape == tuple(meant[plan.name].shape)
    checkpoint = Checkpoint.open(tmp_path / "stored")
    found = load_file(checkpoint.path / "model.safetensors")
    assert found.keys() == meant.keys()
    for key, tensor in found.items():
        quantised = key.endswith("_proj.weight")
        assert tensor.dtype == (torch.bfloat16 if quantised else torch.float32)
        torch.testing.assert_close(tensor.double(), meant[key], rtol=ROUNDED if quantised else 0, atol=1e-7)
    check_source(checkpoint)
    if name in BY_TRANSFORMERS:
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "stored", dtype=torch.bfloat16).state_dict()
        for key, tensor in found.items():
            assert torch.equal(theirs[key].to(torch.bfloat16), tensor.to(torch.bfloat16)), key


def test_three_bits_cross_words_and_a_zero_point_of_nought_wraps() -> None:
    rng = random.Random(1)
    for bits in (2, 3, 5, 8):
        numbers = [[rng.randrange(1 << bits) for _ in range(37)] for _ in range(3)]
        packed = torch.tensor([words(row, bits) for row in numbers], dtype=torch.int32)
        assert unpack(packed, bits, 37).tolist() == numbers
        assert unpack(packed.T, bits, 37, dim=0).T.tolist() == numbers
    tensors, matrix = gptq(3)(rng, 32, 64)
    group = tensors[".g_idx"].long()
    found = dequantise(tensors[".qweight"], tensors[".qzeros"], tensors[".scales"], group, 3, True)
    torch.testing.assert_close(found.double(), torch.tensor(matrix, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    folder = tmp_path / "experts"
    config = GptOssConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=3,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=64,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    GptOssForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    rng, stored, meant = random.Random(0), load_file(folder / "model.safetensors"), {}
    for name in [key for key in stored if key.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, out = stored.pop(name).shape
        made = [mxfp4(rng, out, inputs) for _ in range(experts)]
        stored |= {f"{name}{end}": torch.stack([parts[end] for parts, _ in made]) for end in made[0][0]}
        meant[name] = torch.tensor([matrix for _, matrix in made], dtype=torch.float64).transpose(1, 2)
    rewrite(folder, stored, quantization_config={"quant_method": "mxfp4"})
    checkpoint = Checkpoint.open(folder)
    found = load_file(checkpoint.path / "model.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    assert len(meant) == 4
    for key, matrix in meant.items():
        assert torch.equal(found[key].double(), matrix)  # no rounding: a few bits times a power of two
        assert torch.equal(theirs[key], found[key])
    check_source(checkpoint)


def test_a_run_from_end_to_end(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "Some-GPTQ"
    quantised_llama(source, "gptq")
    (source / "quantize_config.json").write_text("{}", encoding="utf-8")
    text = tmp_path / "text.txt"
    text.write_text("The oath of the three brothers was kept to the end of their days. " * 40, encoding="utf-8")
    asked = {"sites": "channel,weight", "sparsity": 0.25, "method": "magnitude", "samples": 4, "length": 16}
    report = secateur.prune(
        make_recipe({"model": source, "calibrate": text, "evaluate": str(text), "speed": False, **asked}),
        tmp_path / "out",
        quiet=True,
    )
    assert report["model"]["stored_as"] == "GPTQ with 4 bits (14 tensors)"
    assert report["gate"]["max_logit_difference"] <= 1e-3
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "were stored as GPTQ with 4 bits" in card
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not names & {"dequantised.json", "quantize_config.json"}
    saved = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in saved
    assert saved["dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.config.intermediate_size == 18
    # Made once, under a name that says what it is; the source is as it was.
    (made,) = [path for path in (cache / "secateur" / "dequantised").iterdir() if path.is_dir()]
    assert made.name.startswith("Some-GPTQ-")
    assert capsys.readouterr().err.count("dequantise Some-GPTQ") == 1
    found = secateur.inspect(source)
    assert found["stored_as"] == report["model"]["stored_as"]
    assert "dequantise" not in capsys.readouterr().err


Edit = Callable[[dict[str, Tensor], dict[str, Any]], None]
Q = "model.layers.0.self_attn.q_proj"
HOSTILE: list[tuple[str, Edit, str]] = [
    ("fp8 blocks", lambda t, c: t.pop(f"{Q}.weight_scale_inv"), "has no scale"),
    ("fp8 blocks", lambda t, c: t.update({f"{Q}.weight_scale_inv": torch.ones(3, 2)}), "doesn't cover"),
    ("fp8 blocks", lambda t, c: t.update({f"{Q}.weight_scale_inv": torch.ones(0)}), "has the shape [0]"),
    ("fp8 blocks", lambda t, c: c.update(weight_block_size=[0, -1]), "weight_block_size is [0, -1]"),
    ("ct int4", lambda t, c: t.update({f"{Q}.weight_shape": torch.tensor([16, 1 << 40])}), "says 16 x"),
    ("ct int4", lambda t, c: t.update({f"{Q}.weight_shape": torch.tensor([16, 64])}), "isn't 16 x 64 numbers"),
    ("ct int4", lambda t, c: c.update(config_groups=[]), "has no config_groups"),
    ("ct int4", lambda t, c: c.update(transform_config={"config_groups": {}}), "has transform_config"),
    ("ct int4", lambda t, c: c.update(sparsity_config={"format": "sparse-24-bitmask"}), "has sparsity_config"),
    ("ct ordered", lambda t, c: t[f"{Q}.weight_g_idx"].fill_(-1), "leads outside of 2 groups"),
    ("ct nvfp4", lambda t, c: t.update({f"{Q}.weight_global_scale": torch.ones(9)}), "isn't a single number"),
    ("gptq", lambda t, c: t[f"{Q}.g_idx"].fill_(7), "leads outside of 2 groups"),
    ("gptq", lambda t, c: t.update({f"{Q}.scales": torch.ones(2, 5)}), "has the shape [2, 5], not [2, 16]"),
    ("gptq", lambda t, c: t.pop(f"{Q}.qzeros"), "is missing"),
    ("gptq", lambda t, c: t.update({f"{Q}.qweight": torch.zeros(3, 16, dtype=torch.int32)}), "has 3 rows"),
    ("gptq", lambda t, c: t.update({f"{Q}.weight": torch.zeros(16, 16)}), "is there twice"),
    ("gptq", lambda t, c: c.update(bits=True), "bits is True"),
    ("gptq", lambda t, c: c.update(checkpoint_format="marlin"), "the layout marlin is not read"),
    ("awq", lambda t, c: c.update(version="gemv"), "the layout gemv is not read"),
    ("awq", lambda t, c: c.update(checkpoint_format="gemv_fast"), "the layout gemv_fast is not read"),
    ("awq", lambda t, c: c.update(bits=8), "isn't 16 outputs of 8 bits"),
    ("awq", lambda t, c: t.update({f"{Q}.scales": torch.ones(3, 16)}), "not [3, 2]"),
    ("awq", lambda t, c: c.update(quant_method="aqlm"), "quantised as aqlm, which isn't read; fp8"),
    ("awq", lambda t, c: c.update(quant_method="mxfp4"), "it says, but none is"),
    ("bnb8", lambda t, c: t[f"{Q}.weight_format"].fill_(1), "says a layout"),
    ("bnb4", lambda t, c: t[f"{Q}.weight.quant_state.bitsandbytes__nf4"].fill_(0), "isn't the JSON"),
    ("bnb4", lambda t, c: t.update({f"{Q}.weight.absmax": torch.ones(5)}), "has the shape [5], not [8]"),
]


def test_what_does_not_fit_is_said_in_one_line(tmp_path: Path, cache: Path) -> None:
    for number, (name, edit, says) in enumerate(HOSTILE):
        good, folder = tmp_path / name, tmp_path / str(number)
        if not good.exists():
            quantised_llama(good, name)
        shutil.copytree(good, folder)
        tensors = load_file(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        edit(tensors, config)
        rewrite(folder, tensors, quantization_config=config)
        with case(name, says), pytest.raises(SecateurError) as refused:
            Checkpoint.open(folder)
        message = str(refused.value)
        assert says in message
        assert "\n" not in message
        assert refused.value.exit_code == 2
        assert isinstance(refused.value, InputError | UnsupportedModelError)
    assert [path for path in cache.glob("secateur/dequantised/*") if path.is_dir()] == []


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantised_llama(tmp_path / "model", "awq")
    monkeypatch.setattr(containers, "write_weights", lambda *_: pytest.fail("written"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ResourceError, match="XDG_CACHE_HOME"):
        plain_folder(tmp_path / "model")
