"""A target is reached by the least sparsity that reaches it, and what it promised is what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import secateur
from secateur.analysis.inspect import inspect
from secateur.config.quantities import parse_amount
from secateur.config.recipe import load_recipe, make_recipe
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.pipeline import limits as budget
from secateur.pipeline import one_shot
from secateur.pipeline.limits import resolved, shape_at
from tests.small import save_tiny


@pytest.fixture
def model(shared: Path) -> Path:
    return shared / "models" / "stories260K"


def recipe(model: Path, **told: Any) -> Any:
    shared = model.parents[1]
    text = str(shared / "data" / "tinystories" / "calibrate.jsonl")
    quick = {"calibrate": text, "samples": 4, "length": 32, "evaluate": "none", "speed": False, "quality": "fast"}
    return make_recipe({"model": str(model), **quick, **told})


def stored(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(torch.Size(file.get_slice(key).get_shape()).numel() for key in file.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("sites", "target"),
    [
        ("channel", {"params": "80%"}),
        ("channel,kv_group,layer", {"params": "150K"}),
        ("attention,ffn", {"params": "70%"}),
        ("channel", {"size": "800KB"}),
        ("channel,query_head", {"flops": "75%"}),
        ("layer", {"flops": "400K"}),
    ],
)
def test_what_is_saved_is_within_the_target(sites: str, target: dict[str, str], model: Path, tmp_path: Path) -> None:
    told = recipe(model, sites=sites, **target)
    report = secateur.prune(told, tmp_path / "out", quiet=True)
    checkpoint = Checkpoint.open(model)
    before, after = inspect(model), inspect(tmp_path / "out")
    names = {"params": "parameters", "size": "bytes_on_disk", "flops": "flops_per_token"}
    ((key, text),) = target.items()
    wanted = parse_amount(text, key, before[names[key]])
    assert after["parameters"] == stored(tmp_path / "out")
    slack = 1.01 if key == "size" else 1.0  # the header of the file doesn't shrink
    assert after[names[key]] <= slack * wanted
    # One step less of sparsity is too little.
    less = report["recipe"]["sparsity"] - 1.5 * budget.MOST / budget.FINEST
    assert budget._MEASURES[key](told, checkpoint, less) > wanted
    # The result repeats itself without the search.
    again = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert again.limit is None
    assert again.sparsity == report["recipe"]["sparsity"]
    again_report = secateur.prune(again, tmp_path / "again", quiet=True)
    assert again_report["parameters"] == report["parameters"]


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5])
def test_a_shape_is_that_of_the_cut_model(sparsity: float, model: Path, tmp_path: Path) -> None:
    told = recipe(model, sites="channel,kv_group,layer", params="50%")
    shape = shape_at(told, Checkpoint.open(model), sparsity)
    if not sparsity:
        assert shape.parameters == stored(model)
        return
    plain = recipe(model, sites="channel,kv_group,layer", sparsity=sparsity)
    secateur.prune(plain, tmp_path / "out", quiet=True)
    assert shape.parameters == stored(tmp_path / "out")
    assert len(shape.layers) == Checkpoint.open(tmp_path / "out").layers


def test_latency_is_bisected(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that goes by the parameters the sparsity is the one for parameters, to a sixteenth."""
    tried: list[int] = []
    real = budget.speed

    class Clock:
        def __init__(self, built: torch.nn.Module) -> None:
            if not tried:
                assert real(built).decode_tokens_per_s > 0  # whatever this machine takes for it
            tried.append(sum(p.numel() for p in built.parameters()))
            self.decode_tokens_per_s = 1e6 / tried[-1]

    monkeypatch.setattr(budget, "speed", Clock)
    found = resolved(recipe(model, sites="channel", latency="80%"), Checkpoint.open(model))
    want = resolved(recipe(model, sites="channel", params="80%"), Checkpoint.open(model))
    assert len(tried) <= 6
    assert 0 <= found.sparsity - want.sparsity <= budget.MOST / budget.TIMED
    with pytest.raises(InputError, match="isn't understood"):
        recipe(model, sites="channel", latency="5 apples")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"sites": "channel", "params": "1M"}, "already; give less"),
        ({"sites": "channel", "params": "1K"}, "there are still .* give more, or more sites"),
        ({"sites": "channel", "params": "75%", "sparsity": 0.5}, "say the same thing twice"),
        ({"sites": "channel", "params": "75%", "flops": "50%"}, "say the same thing twice"),
        ({"sites": "weight", "params": "75%"}, "zeros are"),
        ({"sites": "channel", "size": "a lot"}, "not a size"),
        ({"sites": "channel", "params": "lots"}, "isn't understood; write it like 75% or 1.5B"),
    ],
)
def test_a_target_that_cannot_be(told: dict[str, Any], message: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        secateur.prune(recipe(model, **told), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_kind_that_would_lose_nothing_is_left_out(model: Path) -> None:
    found = resolved(recipe(model, sites="channel,kv_group", params="97%"), Checkpoint.open(model))
    assert found.sites == ("channel",)


def test_an_interrupted_run_does_not_measure_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "model", num_hidden_layers=4)
    (tmp_path / "text.jsonl").write_text(
        "\n".join(json.dumps({"text": f"the {i} that {i * i}" * 4}) for i in range(40))
    )
    own = {"calibrate": str(tmp_path / "text.jsonl"), "samples": 8, "length": 16, "evaluate": "none", "speed": False}
    told = make_recipe({"model": str(tmp_path / "model"), "sites": "channel", "params": "90%", **own})
    cut_block = one_shot.cut_block

    def pruning_steps(block: Any, *rest: Any) -> Any:
        if block.index == 2:
            raise KeyboardInterrupt
        return cut_block(block, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(one_shot, "cut_block", pruning_steps)
        with pytest.raises(KeyboardInterrupt):
            secateur.prune(told, tmp_path / "out", quiet=True)
    monkeypatch.setitem(budget._MEASURES, "params", None)
    report = secateur.prune(told, tmp_path / "out", resume=True, quiet=True)
    assert report["parameters"]["after"] <= 0.9 * report["parameters"]["before"]
