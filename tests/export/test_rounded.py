"""Models rounded without a file: the numbers that the file would have, and its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import secateur
from secateur.evaluation.streamed import evaluate_streamed
from secateur.export.gguf import llama_cpp
from secateur.export.gguf.export import header_bytes
from secateur.model.checkpoint import Checkpoint
from tests.export import cases

gguf = pytest.importorskip("gguf", reason="the package gguf, of the extra gguf, isn't installed")
from secateur.export.gguf.rounded import Rounded, entry_bytes, rounded  # noqa: E402 - needs the package

CPU = torch.device("cpu")


def tensors_of(folder: Path, out: Path, numbers: str) -> dict[str, Any]:
    """Name -> numbers of a file that `export` has made."""
    secateur.export(folder, out, secateur.make_export({"to": "gguf", "type": numbers}), quiet=True)
    [file] = out.glob("*.gguf")
    read = gguf.GGUFReader(str(file)).tensors
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in read}


def saved(streamed: Rounded, folder: Path) -> Path:
    """A folder with the rounded weights in fp32."""
    checkpoint = streamed.checkpoint
    model = secateur.load(checkpoint.path, device="cpu", dtype="float32")
    layers = model.get_submodule(checkpoint.family.layers)
    with torch.no_grad():
        for index in range(checkpoint.layers):
            layers[index].load_state_dict(streamed.load(index).state_dict())
        own, outside = model.state_dict(), streamed._model.state_dict()
        model.load_state_dict(own | {name: value for name, value in outside.items() if name in own})
    model.save_pretrained(folder)
    return cases.with_tokenizer(folder)


@pytest.mark.parametrize("numbers", ["q8_0", "q4_0", "q5_1", "f16"])
@pytest.mark.parametrize("case", ["llama", "qwen2", "olmo2", "gemma2", "gpt2", "mixtral"])
def test_the_numbers_are_those_of_the_file(
    case: str, numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "find", lambda: None)
    folder = cases.dense(case, tmp_path / "dense")
    wanted = tensors_of(folder, tmp_path / "file", numbers)
    streamed = Rounded(Checkpoint.open(folder), CPU, torch.float32, numbers)
    found = tensors_of(saved(streamed, tmp_path / "rounded"), tmp_path / "again", "f32")
    plain = tensors_of(folder, tmp_path / "plain", "f32")
    changed = 0
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        # The file's channels are filled up with zeros to whole blocks.
        want = wanted[name][tuple(slice(size) for size in value.shape)]
        scaled = case == "gemma2" and "attn_q" in name  # the file has it times a factor, and the scale in f16
        np.testing.assert_allclose(value, want, rtol=0, atol=1e-3 if scaled else 1e-6, err_msg=name)
        changed += not np.array_equal(value, plain[name])
    assert changed > 4


def test_rounding_twice_is_rounding_once() -> None:
    torch.manual_seed(0)
    value = torch.randn(5, 70) * torch.logspace(-3, 1, 5)[:, None]
    for kind in ("f16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1"):
        once = rounded(value, kind)
        assert once.shape == value.shape
        torch.testing.assert_close(rounded(once, kind), once, rtol=0, atol=2e-3 * float(value.abs().max()))


@pytest.mark.parametrize("numbers", ["f32", "q8_0", "q4_0"])
def test_the_bytes_are_known_beforehand(numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "find", lambda: None)
    folder = cases.dense("llama", tmp_path / "dense")
    secateur.export(folder, tmp_path / "out", secateur.make_export({"to": "gguf", "type": numbers}), quiet=True)
    [file] = (tmp_path / "out").glob("*.gguf")
    weights = sum(tensor.n_bytes for tensor in gguf.GGUFReader(str(file)).tensors)
    beside = file.stat().st_size - weights
    assert header_bytes(Checkpoint.open(folder), numbers) == pytest.approx(beside, rel=0.03)
    assert entry_bytes("q4_0") == 18 / 32


def test_a_rounded_model_is_judged(tmp_path: Path) -> None:
    folder = cases.dense("llama", tmp_path / "dense")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    checkpoint = Checkpoint.open(folder)

    def loss(kind: str) -> float:
        streamed = Rounded(checkpoint, CPU, torch.float32, kind)
        return float(evaluate_streamed(streamed, str(tmp_path / "text.txt"))["perplexity"])

    exact, fine, coarse = loss("f32"), loss("q8_0"), loss("q4_0")
    assert 0 < abs(fine - exact) < abs(coarse - exact)
