"""Hidden dimensions beside everything else: what a level's candidates lose and save is what the made model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from secateur.config.plan import Plan
from secateur.config.searching import SearchSettings, make_search
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.search import trial
from secateur.search.prepared import opened
from secateur.search.search import search
from secateur.search.trial import evaluated
from secateur.system.monitor import Monitor
from tests.search.interrupted import interrupted
from tests.search.text import write_text
from tests.small import save_tiny


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> SearchSettings:
    """A model whose stream lies in half of its dimensions, so that an eighth of them isn't missed."""
    folder = tmp_path_factory.mktemp("hidden")
    save_tiny(folder / "model", context=64, hidden_size=64, intermediate_size=32, tie_word_embeddings=False)
    model = secateur.load(folder / "model", device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                parameter[:, 32:] = 0
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[32:] = 0
    model.save_pretrained(folder / "model")
    write_text(folder, 100)
    told = {"model": str(folder / "model"), "calibrate": str(folder / "text.jsonl"), "samples": 8, "length": 32}
    told |= {"evaluate": "none", "speed": False, "general_text": 0, "explain": False, "device": "cpu", "trials": 3}
    told |= {"sites": "channel,hidden", "want": "params=0.7x", "quality": "fast", "refit": False}
    return make_search(told)


def test_fewer_dimensions_and_channels_are_found_made_and_replayed(
    settings: SearchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings are most of this model, so channels alone can't keep the wish. Pieces are measured on less text."""
    monkeypatch.setattr(trial, "FEW", 64)
    monkeypatch.setattr(trial, "ENOUGH", 1)
    found = interrupted(settings, tmp_path / "out", monkeypatch)
    first, second = found["hidden"]
    assert (first["kept"], second["kept"], first["units"]) == (56, 48, 64)
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["best"] is None  # nothing of it is small enough
    assert second["chosen"]
    [chosen] = [one for one in found["candidates"] if one["chosen"]]
    [wish] = found["wishes"]
    made = Checkpoint.open(tmp_path / "out")
    assert made.config.hidden_size == 48
    assert made.parameters == wish["got"] == chosen["takes"]["params"] <= wish["limit"]
    assert wish["whole"] == found["whole"]["params"] == Checkpoint.open(settings.model).parameters

    inputs, _ = opened(settings, torch.device("cpu"), Monitor(torch.device("cpu"), True))
    ids = evaluated(inputs.calibration.tokens)
    dense, pruned = (secateur.load(folder, device="cpu") for folder in (settings.model, tmp_path / "out"))
    with torch.no_grad():
        p, q = (model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1) for model in (dense, pruned))
    assert chosen["measured"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert chosen["measured"] > 1e-3
    assert chosen["pieces"]

    recipe = secateur.load_recipe(tmp_path / "out" / "recipe.yaml")
    assert "hidden" in recipe.sites
    secateur.prune(recipe, tmp_path / "again", plan=Plan.read(tmp_path / "out" / "plan.json"), quiet=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert weights[0] == weights[1]
    assert "Hidden dimensions" in (tmp_path / "out" / "search.html").read_text(encoding="utf-8")


def test_levels_that_lose_too_much_alone_are_not_searched(settings: SearchSettings, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", seed=1, context=64, hidden_size=32, intermediate_size=64)
    told = settings.model_copy(update={"model": str(tmp_path / "model"), "want": ("params=0.97x",)})
    found = search(told, tmp_path / "out", quiet=True)
    [level] = found["hidden"]
    assert level["best"] is None
    assert level["kl"] >= min(one["measured"] for one in found["candidates"])
    without = search(told.model_copy(update={"sites": ("channel",)}), tmp_path / "without", quiet=True)
    assert without["hidden"] == []
    assert without["candidates"] == found["candidates"]
    for name in ("plan.json", "model.safetensors"):
        assert (tmp_path / "without" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"want": "latency=0.7x"}, "wishes about params, size, memory or flops alone"),
        ({"want": ()}, "wishes about params"),
        ({"sites": "hidden"}, "go beside something else"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_search({"model": "m", "sites": "channel,hidden", "want": "params=0.5x", **changes})


def test_not_on_ray(settings: SearchSettings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="searched in one process"):
        search(settings, tmp_path / "out", on="ray")
