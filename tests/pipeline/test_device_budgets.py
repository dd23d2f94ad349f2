"""What a run asks of a device: how often it waits for one block, and what it sends there and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import secateur
from secateur.calibration import walk
from secateur.config.recipe import make_recipe
from tests.simulated import device as sim
from tests.simulated.counts import Counts
from tests.small import save_tiny

WIDE = {"hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}
# What is asked for, and how often a block of seven Linears may wait for the device.
WAITS: dict[str, tuple[dict[str, Any], int]] = {
    "wanda": ({"sites": "weight", "sparsity": 0.5, "method": "wanda"}, 30),
    "sparsegpt 2:4": ({"sites": "weight", "pattern": "2:4", "method": "sparsegpt"}, 60),
    "units": ({"sites": "channel,kv_group", "sparsity": 0.5, "method": "obs"}, 80),
    "balanced": ({"sites": "weight", "sparsity": 0.5, "quality": "balanced", "general_text": 0}, 600),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    save_tiny(folder / "narrow", num_hidden_layers=3)
    save_tiny(folder / "wide", num_hidden_layers=3, **WIDE)
    rows = [f"the thing number {i} thought that {i * i} was that then, or {i % 7}" for i in range(40)]
    (folder / "text.txt").write_text("\n\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture
def block_of(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Counts, int]]:
    """What the second of three blocks came to, and its bytes: the first and the last have more to do."""

    def run(model: str, asked: dict[str, Any]) -> tuple[Counts, int]:
        found: list[Counts] = []

        def rounded(*_: Any) -> None:
            found.append(sim.COUNTS)
            sim.count()

        monkeypatch.setattr(walk, "round_to_stored", rounded)
        values = {"model": source / model, "calibrate": source / "text.txt", "samples": 16, "length": 16}
        values |= {"evaluate": "none", "speed": False, "device": sim.simulate().type, "dtype": "float32", **asked}
        secateur.prune(make_recipe(values), tmp_path / model, quiet=True, dry_run=True)
        stored = load_file(source / model / "model.safetensors")
        return found[1], sum(tensor.nbytes for name, tensor in stored.items() if ".layers.1." in name)

    return run


@pytest.mark.parametrize("name", WAITS)
def test_a_block_waits_as_often_however_wide_it_is(name: str, block_of: Any) -> None:
    asked, most = WAITS[name]
    wide, size = block_of("wide", asked)
    assert wide.waits <= most, wide.shown("waits")
    if name != "balanced":  # its solves end when they have settled
        narrow, _ = block_of("narrow", asked)
        assert wide.waits <= 1.1 * narrow.waits, f"{narrow.shown('waits')}\n\n{wide.shown('waits')}"
    evidence = 0 if asked["sites"] == "weight" else 160 * WIDE["intermediate_size"]  # some numbers of each unit
    assert wide.to_host < 0.1 * size + evidence, wide.shown("to_host")
    assert wide.to_device < 1.1 * size, wide.shown("to_device")  # the next block, and what its layer is called with
