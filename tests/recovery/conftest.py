"""Small pruned models to recover, and text to do it on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import secateur
from tests.small import TRAINING_LENGTH, save_tiny


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and some text."""
    folder = tmp_path_factory.mktemp("source")
    save_tiny(folder / "model", num_hidden_layers=3, context=64)
    rows = [{"text": f"the thing number {i} thought that {i * i * 31 % 9973} was then; " * 3} for i in range(200)]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def prune(source: Path, out: Path, **changes: object) -> Path:
    """The folder of a quickly pruned model."""
    values = {
        "model": str(source / "model"),
        "calibrate": str(source / "text.jsonl"),
        "samples": 8,
        "length": TRAINING_LENGTH,
    }
    values |= {"evaluate": "none", "speed": False, "method": "magnitude", "refit": False, **changes}
    secateur.prune(secateur.make_recipe(values), out, quiet=True)
    return out


@pytest.fixture(scope="session")
def pruned(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Half of the weights zero, two of four zero, layers of uneven width, a layer less."""
    folder = tmp_path_factory.mktemp("pruned")
    return {
        "free": prune(source, folder / "free", sparsity=0.5),
        "2:4": prune(source, folder / "two", pattern="2:4"),
        "channel": prune(source, folder / "channel", sites="channel", sparsity=0.5, protect="0"),
        "layer": prune(source, folder / "layer", sites="layer", sparsity=0.34, method="leave_one_out"),
    }
