"""Scores of whole layers, on a real model and against the hidden states that transformers gives."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import secateur
from secateur.calibration import layer_scores
from secateur.calibration.layer_scores import leave_out, loss_without, passes_of, scores_of_layers
from secateur.numerics.layer_information import LayerInformation
from tests.small import save_tiny


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


@pytest.mark.parametrize(("count", "passes"), [(1, 1), (2, 2), (3, 3), (6, 2)])
def test_what_is_left_out_is_weighed_on_some_tokens_in_so_many_passes(
    count: int, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of seven layers: all pairs are fewer than four passes would weigh, so they are; threes are chosen greedily."""
    save_tiny(tmp_path / "model", num_hidden_layers=7)
    streamed = secateur.open_for_walk(tmp_path / "model")
    tokens = torch.randint(0, 64, (5, 16), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(layer_scores, "TOKENS", 40)  # two sequences
    allowed, steps = [(index, "layer") for index in range(7)], list[str]()
    gone, losses = leave_out(streamed, tokens, count, allowed, steps.append)
    assert len(gone) == count
    assert len(steps) == 7 * passes == 7 * passes_of(7, count, 7)
    assert leave_out(streamed, tokens[:2], count, allowed) == (gone, losses)
    single = loss_without(streamed, tokens[:2], [frozenset({part}) for part in allowed])
    if count == 1:
        assert [losses[part] for part in allowed] == single
    if count == 2:
        pairs = [frozenset(pair) for pair in itertools.combinations(allowed, 2)]
        found = loss_without(streamed, tokens[:2], pairs)
        assert gone == pairs[found.index(min(found))]
    model = secateur.load(tmp_path / "model", device="cpu")
    del model.model.layers[3]
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    with torch.no_grad():
        logits = model(tokens[:2], use_cache=False).logits[:, :-1].double()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:2, 1:].flatten())
    assert single[3] == pytest.approx(float(expected), rel=1e-4)
