"""A model that was pruned already keeps its zeros, whatever else is cut from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from tests.small import save_tiny

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """Half of every matrix is zero."""
    folder = save_tiny(tmp_path / "source", intermediate_size=32)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "proj" in name:
            tensor[torch.rand(tensor.shape, generator=generator) < 0.5] = 0.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


CASES: dict[str, dict[str, Any]] = {
    "channel": {"sites": "channel", "sparsity": 0.25},
    "head": {"sites": "query_head", "sparsity": 0.5},
    "bias": {"sites": "channel", "sparsity": 0.25, "bias": "add"},
    "dense target": {"sites": "channel", "sparsity": 0.25, "target": "dense"},
    "solved weights": {"sites": "weight", "sparsity": 0.2, "method": "sparsegpt"},
    "scored weights": {"sites": "weight", "sparsity": 0.2, "method": "wanda"},
}


@pytest.mark.parametrize("case", CASES)
def test_zeros_stay_and_are_counted_in_the_files(case: str, sparse: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"the {i} of them and the other {i * i}"}) + "\n" for i in range(60)))
    told = {"model": str(sparse), "calibrate": str(text), "samples": 16, "length": 16, "evaluate": "none"}
    report = secateur.prune(secateur.make_recipe(told | CASES[case]), tmp_path / "out", quiet=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (sparse, tmp_path / "out"))
    for name, tensor in after.items():
        if "proj.weight" in name:
            assert float((tensor == 0).float().mean()) > 0.35, name  # filled in, there'd be none
    assert report["parameters"]["nonzero_before"] == sum(int(t.count_nonzero()) for t in before.values())
    assert report["parameters"]["nonzero_after"] == sum(int(t.count_nonzero()) for t in after.values())
