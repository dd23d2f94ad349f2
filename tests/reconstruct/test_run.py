"""Whole runs with reconstruction on a real model: what the report says of it, and that a loss is undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import secateur
from secateur.config.recipe import make_recipe
from secateur.cut import rules

LAYERS = 5


def prune(shared: Path, out: Path, **asked: Any) -> dict[str, Any]:
    values = {
        "model": shared / "models/stories260K",
        "calibrate": shared / "data/tinystories/calibrate.jsonl",
        "sparsity": 0.5,
        "quality": "best",
        "samples": 8,
        "length": 64,
        "evaluate": "none",
        "speed": False,
    }
    return secateur.prune(make_recipe(values | asked), out, quiet=True)


@pytest.mark.parametrize(
    "asked",
    [{}, {"pattern": "2:4", "masks": "gradual"}, {"sites": "channel,query_head"}],
)
def test_the_report_says_what_every_block_gained(asked: dict[str, Any], shared: Path, tmp_path: Path) -> None:
    told = {**asked, "sparsity": None} if "pattern" in asked else asked
    steps = 100 if asked.get("masks") == "gradual" else 25
    report = prune(shared, tmp_path / "out", reconstruct=steps, samples=32, length=128, **told)
    found = report["reconstruction"]
    assert [block["layer"] for block in found] == list(range(LAYERS))
    for block in found:
        assert 0 <= block["held_out_after"] <= block["held_out_before"] < 3
        assert block["predictions"] == (block["layer"] == LAYERS - 1)
        assert (block["held_out_after"] < block["held_out_before"]) == bool(block["steps"])
        assert 0 < block["before"] < 3
        assert 0 < block["after"] < 3
    assert any(block["steps"] for block in found)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for site in report["sites"]:
        if site["kind"] == "weight":
            weight = tensors[f"model.{site['name']}.weight"]
            assert int((weight == 0).sum()) == site["weights_zeroed"]
            if "pattern" in asked:
                assert ((weight.unflatten(1, (-1, 4)) != 0).sum(-1) <= 2).all()


def test_a_loss_is_undone_and_said(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune(shared, tmp_path / "without", reconstruct=0)
    monkeypatch.setattr(rules, "rate_of", lambda masks, hidden: 1e4)
    report = prune(shared, tmp_path / "undone", reconstruct=5)
    assert [block["steps"] for block in report["reconstruction"]] == [0] * LAYERS
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("without", "undone"))
    assert one == other
    assert "no gain, left as it was" in (tmp_path / "undone" / "report.html").read_text(encoding="utf-8")
