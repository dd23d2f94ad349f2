"""Products in half precision: what a training leaves computes in fp32 again."""

from __future__ import annotations

from pathlib import Path

import secateur
from tests.small import TRAINING_LENGTH


def test_what_was_trained_in_bf16_passes_the_gate(source: Path, pruned: dict[str, Path], tmp_path: Path) -> None:
    """The saved model is compared with the one in memory, which must have left autocast behind."""
    values = {"how": "full", "data": str(source / "text.jsonl"), "steps": 2, "batch": 2, "length": TRAINING_LENGTH}
    told = secateur.make_recovery(values)  # the rate is picked by short runs: each leaves the model as it came
    report = secateur.recover(
        pruned["free"], tmp_path / "out", told, evaluate="none", dtype="bfloat16", speed=False, quiet=True
    )
    assert report["gate"]["max_logit_difference"] <= report["gate"]["tolerance"]
