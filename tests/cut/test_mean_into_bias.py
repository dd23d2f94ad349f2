"""FLAP as published: no refit, and a bias that takes over the mean of what went."""

from __future__ import annotations

from pathlib import Path

import torch

import secateur


def test_the_bias_is_the_mean_of_what_went(shared: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = shared / "models" / "stories260K"
    text = str(shared / "data" / "tinystories" / "eval.jsonl")
    values = {"model": folder, "calibrate": text, "samples": 8, "length": 64, "sites": "channel", "sparsity": 0.25}
    values |= {"method": "flap", "refit": False, "bias": "add", "evaluate": "none", "speed": False}
    report = secateur.prune(secateur.make_recipe(values), tmp_path / "out", quiet=True)
    for site in report["sites"]:
        assert site["error_after_refit"] < site["error_before_refit"]
    keep = secateur.Plan.read(tmp_path / "out" / "plan.json").entry("layers.0.channel")
    assert keep is not None
    assert keep.keep is not None
    gone = [unit for unit in range(172) if unit not in keep.keep]
    dense, cut = secateur.load(folder), secateur.load(tmp_path / "out")
    seen: list[torch.Tensor] = []
    consumer = dense.model.layers[0].mlp.down_proj
    consumer.register_forward_pre_hook(lambda m, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        dense(secateur.calibrate(folder, text, 8, 64).tokens)
        expected = consumer.weight[:, gone] @ torch.cat(seen)[:, gone].mean(0)
    torch.testing.assert_close(cut.model.layers[0].mlp.down_proj.bias, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(cut.model.layers[0].mlp.down_proj.weight, consumer.weight[:, list(keep.keep)])
