"""Zeros are +0.0, whatever made them, and compress finds all of them, also what other tools have left at -0.0."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur.cli import app as cli
from secateur.methods import METHODS, prune_weight
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import Pattern
from tests.runtime.pruned import prune_copy
from tests.small import save_tiny

WEIGHTS = [name for name, method in METHODS.items() if "weights" in method.prunes]
NAME = "model.layers.0.mlp.up_proj.weight"


def negative(W: torch.Tensor) -> int:
    return int(((W == 0) & W.signbit()).sum())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def masked(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As tools that multiply by a mask leave a model: half of its zeros are negative."""
    folder = prune_copy(model, tmp_path_factory.mktemp("masked") / "half")
    file, dense = folder / "model.safetensors", load_file(model / "model.safetensors")
    tensors = {name: dense[name] * (tensor != 0) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    assert negative(tensors[NAME]) > 50
    return folder


def test_compress_takes_negative_zeros_as_zeros_and_says_so(
    masked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["compress", str(masked), "--out", str(tmp_path / "small"), "--quiet"])
    assert not ended.value.code
    found = json.loads((tmp_path / "small" / "report.json").read_text())["compression"]
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)
    said = capsys.readouterr().out
    assert f"{found['negative_zeros']:,} taken as zeros" in said
    assert "--exact-bits" in said
    secateur.decompress(tmp_path / "small", tmp_path / "back", quiet=True)
    before, after = load_file(masked / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
    assert negative(after[NAME]) == 0


def test_exact_bits_keeps_them(masked: Path, tmp_path: Path) -> None:
    found = secateur.compress(masked, tmp_path / "small", exact_bits=True, quiet=True)
    assert found["negative_zeros"] == 0
    assert found["sparsity"] == pytest.approx(0.25, abs=0.03)
    secateur.decompress(tmp_path / "small", tmp_path / "back", quiet=True)
    before, after = load_file(masked / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert all(t.view(torch.int32).equal(after[name].view(torch.int32)) for name, t in before.items())


def moments(x: torch.Tensor) -> Moments:
    found = Moments(x.shape[1], frozenset({"mean", "mean_abs", "rms", "gram", "sample"}))
    found.update(x)
    return found


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_every_method_leaves_is_compressed_to_what_was_asked(name: str, model: Path, tmp_path: Path) -> None:
    """Zeros found by compress == zeros in the matrices == zeros asked for."""
    generator = torch.Generator().manual_seed(0)
    folder = Path(shutil.copytree(model, tmp_path / "pruned"))
    file = folder / "model.safetensors"
    tensors, asked, entries = load_file(file), 0, 0
    for key in [key for key in tensors if "proj" in key]:
        W = tensors[key]
        x = torch.randn(200, W.shape[1], generator=generator)
        slopes = {need: torch.rand(W.shape, generator=generator) for need in METHODS[name].loss}
        solution = prune_weight(METHODS[name], W, moments(x), Pattern.parse("2:4"), 0.5, slopes)
        assert negative(solution.weight) == 0
        tensors[key] = solution.weight.clone()
        asked, entries = asked + W.numel() // 2, entries + W.numel()
        assert int((solution.weight == 0).sum()) == W.numel() // 2
    save_file(tensors, file, metadata={"format": "pt"})
    found = secateur.compress(folder, tmp_path / "small", exact_bits=True, quiet=True)
    assert found["sparsity"] == pytest.approx(asked / entries, abs=1e-6)
