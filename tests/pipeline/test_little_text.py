"""Too little text is refused; a report says why it has no figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.errors import InputError
from tests.small import save_tiny

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def prune(model: Path, out: Path, tokens: int, dry_run: bool = True, **told: Any) -> dict[str, Any]:
    text = out.parent / f"{out.name}.jsonl"
    text.write_text(json.dumps({"input_ids": [i % 200 for i in range(tokens)]}))
    asked = {"model": str(model), "sites": "channel", "sparsity": 0.5, "calibrate": str(text), "length": 16}
    recipe = secateur.make_recipe({**asked, "evaluate": "none", "speed": False, "general_text": 0, **told})
    return secateur.prune(recipe, out, dry_run=dry_run, quiet=True)


def test_less_than_a_tenth_of_what_was_asked_for_is_refused(model: Path, tmp_path: Path) -> None:
    said = r"gives 1 sequence of 16 tokens, 11 were asked for; .*--samples 1, or --allow-little-text$"
    with pytest.raises(InputError, match=said):
        prune(model, tmp_path / "out", 20, samples=11)
    assert not (tmp_path / "out").exists()
    report = prune(model, tmp_path / "allowed", 20, samples=11, allow_little_text=True)
    assert any("gives 1 sequences of 16" in line for line in report["warnings"])
    assert prune(model, tmp_path / "tenth", 20, samples=10)["calibration"]["samples"] == 1


def test_the_evaluation_is_null_with_its_reason(model: Path, tmp_path: Path) -> None:
    dry = prune(model, tmp_path / "dry", 64, samples=4)
    assert (dry["evaluation"], dry["not_evaluated"]) == (None, "a dry run saves no model")
    none = prune(model, tmp_path / "none", 64, False, samples=4)
    assert (none["evaluation"], none["not_evaluated"]) == (None, "evaluate is none")
    over = prune(model, tmp_path / "over", 64, False, samples=4, evaluate=None)
    assert over["evaluation"] is None
    assert "leaves no sequence over" in over["not_evaluated"]
    there = prune(model, tmp_path / "there", 128, False, samples=4, evaluate=None)
    assert there["evaluation"]["data"].endswith("not calibrated on")
    assert "not_evaluated" not in there
