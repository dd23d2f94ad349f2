"""A device whose memory ends: batches are halved, results stay, and the report says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.calibration.stream import Stream
from secateur.config.recipe import make_recipe
from secateur.errors import ResourceError
from secateur.model.streamed import StreamedModel
from secateur.recovery.trainer import Recoverer
from tests.model.mixture import upcycled
from tests.simulated import device as sim
from tests.small import byte_tokenizer, save_tiny, tiny_llama

NOTE = "not enough memory on sim"
# What is computed is much larger than what it is computed from.
WIDE = {"hidden_size": 16, "intermediate_size": 256, "num_hidden_layers": 1, "context": 64}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    save_tiny(folder / "model", **WIDE)
    upcycled(tiny_llama(**WIDE), 0.1).save_pretrained(folder / "mixture")
    byte_tokenizer().save_pretrained(folder / "mixture")
    rows = [f"the thing number {i} thought that {i * i} was that then, or {i % 7} of these" for i in range(90)]
    (folder / "text.txt").write_text("\n\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture
def twice(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any]]:
    """What a run gives where memory has no end, and where a method of a class has 0.7 of what it took then."""

    def run(work: Callable[[str], Any], owner: type, method: str) -> tuple[Any, Any]:
        own, most, ends = getattr(owner, method), 0, False
        sim.simulate()

        def called(self: Any, *given: Any, **named: Any) -> Any:
            nonlocal most
            before, sim.MEMORY.peak = sim.MEMORY.now, sim.MEMORY.now
            sim.MEMORY.total = before + int(0.7 * most) if ends else None
            try:
                return own(self, *given, **named)
            finally:
                sim.MEMORY.total = None
                most = most if ends else max(most, sim.MEMORY.peak - before)

        monkeypatch.setattr(owner, method, called)
        whole, ends = work("whole"), True
        with pytest.warns(UserWarning, match=NOTE):
            return whole, work("short")

    return run


CUTS: dict[str, dict[str, Any]] = {
    "sparsegpt": {"sites": "weight", "sparsity": 0.5, "method": "sparsegpt"},
    "channels, refitted": {"sites": "channel,kv_group", "sparsity": 0.5, "method": "obs"},
    "tuned": {"sites": "weight", "sparsity": 0.5, "method": "wanda", "reconstruct": 6},
    "experts": {"sites": "expert", "sparsity": 0.5, "samples": 8},
}


@pytest.mark.parametrize("name", CUTS)
def test_a_walk_goes_on_with_less(name: str, source: Path, tmp_path: Path, twice: Any) -> None:
    model = source / ("mixture" if name == "experts" else "model")
    values = {"model": model, "calibrate": source / "text.txt", "samples": 32, "length": 16}
    values |= {"evaluate": "none", "speed": False, "device": "sim", "dtype": "float32", **CUTS[name]}
    whole, short = twice(lambda out: secateur.prune(make_recipe(values), tmp_path / out, quiet=True), Stream, "part")
    assert any(NOTE in line for line in short["warnings"])
    assert not any(NOTE in line for line in whole["warnings"])
    own, others = (load_file(tmp_path / out / "model.safetensors") for out in ("whole", "short"))
    for key in own:  # a solve makes more of the last digit of its sums
        assert torch.allclose(own[key], others[key], rtol=1e-3, atol=1e-3), key
        assert torch.equal(own[key] == 0, others[key] == 0), key


def test_a_training_takes_the_same_steps_with_less(source: Path, tmp_path: Path, twice: Any) -> None:
    told = {"data": str(source / "text.txt"), "steps": 2, "batch": 4, "length": 32, "learning_rate": 3e-3}
    told |= {"how": "full", "micro_batch": 2}
    settings = {"device": "sim", "dtype": "float32", "evaluate": "none", "speed": False, "quiet": True}

    def work(out: str) -> Any:
        return secateur.recover(source / "model", tmp_path / out, secateur.make_recovery(told), **settings)

    whole, short = twice(work, Recoverer, "compute_loss")
    assert any(NOTE in line for line in short["warnings"])
    losses = [
        [point["loss"] for point in report["recovery"]["curve"] if "loss" in point] for report in (whole, short)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    own, others = (load_file(tmp_path / out / "model.safetensors") for out in ("whole", "short"))
    for key in own:
        assert torch.allclose(own[key], others[key], rtol=0, atol=2e-5), key


def test_sensitivity_needs_less_at_once(source: Path, twice: Any) -> None:
    def work(_: str) -> Any:
        told = {"sites": ("channel",), "levels": (0.5,), "samples": 16, "length": 16, "device": "sim"}
        return secateur.sensitivity(source / "model", str(source / "text.txt"), **told)

    whole, short = twice(work, StreamedModel, "logits")
    for one, other in zip(whole["sites"], short["sites"], strict=True):
        assert other["kl"] == pytest.approx(one["kl"], rel=1e-5)


def test_one_sequence_too_much_is_said(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("out")

    sim.simulate()
    monkeypatch.setattr(Stream, "part", never)
    values = {"model": source / "model", "calibrate": source / "text.txt", "samples": 2, "length": 16}
    values |= {"evaluate": "none", "speed": False, "device": "sim", "sites": "weight", "sparsity": 0.5}
    with (
        pytest.raises(ResourceError, match="for one sequence; use a shorter --length or --device cpu"),
        pytest.warns(UserWarning, match=NOTE),
    ):
        secateur.prune(make_recipe(values), tmp_path / "out", quiet=True)
