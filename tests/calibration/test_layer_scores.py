"""Scores of whole layers, on a real model and against the hidden states that transformers gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import secateur
from secateur.calibration.layer_scores import scores_of_layers
from secateur.numerics.layer_information import LayerInformation


@pytest.mark.parametrize("measure", ["entropy_increase", "layer_mi"])
def test_they_are_those_of_the_hidden_states(measure: str, shared: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = shared / "models" / "stories260K"
    streamed = secateur.open_for_walk(folder)
    text = str(shared / "data" / "tinystories" / "eval.jsonl")
    tokens = secateur.calibrate(folder, text, 8, 64).tokens
    scores = scores_of_layers(measure, streamed, tokens)
    model = secateur.load(folder)
    layers: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda m, args, out: layers.append(torch.stack([args[0], out])))
    with torch.no_grad():
        model(tokens)
    for score, (h_in, h_out) in zip(scores, layers, strict=True):
        expected = LayerInformation(64)
        expected.update(h_in, h_out)
        own = expected.entropy_increase if measure == "entropy_increase" else expected.unknown
        assert score == pytest.approx(own, rel=1e-3)
    values = {"model": folder, "calibrate": text, "samples": 8, "length": 64, "sites": "layer", "sparsity": 0.2}
    values |= {"method": measure, "evaluate": "none", "speed": False}
    report = secateur.prune(secateur.make_recipe(values), tmp_path / "out", quiet=True, dry_run=True)
    (gone,) = [site["layer"] for site in report["sites"] if not site["kept"]]
    assert gone == min(range(5), key=lambda i: scores[i])
