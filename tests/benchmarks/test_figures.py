"""The figures that the project promises, by its own protocol: 128 sequences of 512 tokens, every document of the
evaluation set alone, fp32. Minutes long; `make slow` runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.config.recipe import make_recipe

pytestmark = pytest.mark.slow

SMALL, LARGE = "stories260K", "stories3M-fp16"


def perplexity(whole: Path, out: Path, model: str, **settings: Any) -> float:
    """Perplexity on the evaluation set of a model pruned by the default protocol."""
    data = whole / "data/tinystories"
    values = {
        "model": whole / "models" / model,
        "calibrate": data / "calibrate.jsonl",
        "evaluate": data / "eval.jsonl",
        "speed": False,
        **settings,
    }
    report = secateur.prune(make_recipe(values), out, quiet=True)
    calibration = report["calibration"]
    assert calibration["tokens"] - 512 * calibration.get("general", 0) == 128 * 512
    return report["evaluation"]["after"]["perplexity"]


@pytest.mark.parametrize(("model", "expected"), [(LARGE, 4.751), (SMALL, 4.299)])
def test_dense(whole: Path, model: str, expected: float) -> None:
    found = secateur.evaluate(
        whole / "models" / model, str(whole / "data/tinystories/eval.jsonl"), speed=False, dtype="float32"
    )
    assert found["perplexity"] == pytest.approx(expected, abs=0.001)


def test_magnitude_is_what_others_measure(whole: Path, tmp_path: Path) -> None:
    found = perplexity(whole, tmp_path / "out", LARGE, method="magnitude", sparsity=0.5)
    assert found == pytest.approx(97, abs=2)


@pytest.mark.parametrize(
    ("model", "settings", "at_most"),
    [
        (LARGE, {"method": "wanda", "sparsity": 0.5}, 26.5),
        (LARGE, {"method": "sparsegpt", "sparsity": 0.5}, 16.0),
        (LARGE, {"method": "sparsegpt", "pattern": "2:4"}, 33.8),
        (LARGE, {"sites": "channel", "method": "obs", "sparsity": 0.25}, 9.0),
        (SMALL, {"sites": "channel", "method": "obs", "sparsity": 0.25}, 6.85),
        (SMALL, {"sites": "channel", "method": "obs", "sparsity": 0.5}, 17.5),
        (SMALL, {"sites": "layer", "method": "leave_one_out", "sparsity": 0.4}, 28.0),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_perplexity_after_pruning(
    model: str, settings: dict[str, Any], at_most: float, whole: Path, tmp_path: Path
) -> None:
    assert perplexity(whole, tmp_path / "out", model, **settings) <= at_most


@pytest.mark.parametrize(
    ("model", "settings"), [(SMALL, {"sparsity": 0.5}), (SMALL, {"sites": "channel", "sparsity": 0.25})]
)
def test_the_defaults_are_better_than_the_single_pass(
    model: str, settings: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    fast, balanced = (
        perplexity(whole, tmp_path / quality, model, quality=quality, **settings) for quality in ("fast", "balanced")
    )
    assert balanced < fast
