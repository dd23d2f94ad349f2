"""A model that is read block by block has the perplexity that it has in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.calibration.activations import MemoryBudget
from secateur.errors import SecateurError
from secateur.evaluation.evaluation import evaluate
from secateur.evaluation.streamed import evaluate_streamed
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from tests.small import save_tiny

SAME = ("data", "data_sha256", "tokens", "windows", "length")


def opened(folder: Path) -> StreamedModel:
    return StreamedModel(Checkpoint.open(folder), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("budget", [None, 0])
def test_the_figures_of_the_model_in_memory(tmp_path: Path, budget: int | None) -> None:
    folder = save_tiny(tmp_path / "model")
    (tmp_path / "a.txt").write_text("the one text, long enough for several windows; " * 8)
    (tmp_path / "b.jsonl").write_text(
        '{"text": "the thing"}\n{"text": "or then"}\n{"text": "that other thing there"}\n'
    )
    data = f"{tmp_path / 'a.txt'},{tmp_path / 'b.jsonl'}"
    whole = evaluate(folder, data, speed=False)
    steps: list[str] = []
    found = evaluate_streamed(opened(folder), data, MemoryBudget(budget), tmp_path, steps.append)
    assert steps == ["layer 0", "layer 1"]
    assert found["sets"].keys() == whole["sets"].keys()
    for part, expected in [(found, whole), *zip(found["sets"].values(), whole["sets"].values(), strict=True)]:
        for key in SAME:
            if key in expected:
                assert part[key] == expected[key]
        for key in ("perplexity", "bits_per_byte"):
            assert part[key] == pytest.approx(expected[key], rel=1e-5)
    assert not (tmp_path / "evaluated.bin").exists()


def test_logits_that_are_not_finite_are_said(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(torch.finfo(torch.float32).max)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "a.txt").write_text("the text")
    with pytest.raises(SecateurError, match="infinite or undefined logits"):
        evaluate_streamed(opened(folder), str(tmp_path / "a.txt"), work=tmp_path)
    assert not (tmp_path / "evaluated.bin").exists()


def test_what_surrounds_the_layers_is_read_again_when_it_is_needed(tmp_path: Path) -> None:
    streamed = opened(save_tiny(tmp_path / "model"))
    ids = torch.arange(6)[None]
    hidden, _ = streamed.embed(ids)
    logits, around = streamed.logits(ids, hidden), streamed.surroundings()
    streamed.release()
    streamed.release()
    assert torch.equal(streamed.logits(ids, hidden), logits)
    assert all(torch.equal(t, around[n]) for n, t in streamed.surroundings().items())
    assert {n: (t.shape, t.dtype) for n, t in streamed.surroundings(True).items()} == {
        n: (t.shape, t.dtype) for n, t in around.items()
    }
