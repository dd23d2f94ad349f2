"""Two ranks train as one does with the same batch: the same losses, step by step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import secateur
from tests.small import TRAINING_LENGTH as LENGTH
from tests.system.launch import torchrun

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@pytest.mark.parametrize("how", ["distill", pytest.param("lora", marks=pytest.mark.slow)])
def test_two_ranks_do_what_one_does(how: str, source: Path, pruned: dict[str, Path], tmp_path: Path) -> None:
    told = {"how": how, "data": str(source / "text.jsonl"), "steps": 10, "batch": 4, "length": LENGTH}
    told |= {"evaluate_every": 5, "learning_rate": 3e-3, "micro_batch": 1}
    one = secateur.recover(
        pruned["free"], tmp_path / "one", secateur.make_recovery(told), evaluate="none", speed=False, quiet=True
    )
    flags = [word for key, value in told.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    out = ["--evaluate", "none", "--no-speed", "--out", str(tmp_path / "two")]
    done = torchrun(["-m", "secateur", "recover", str(pruned["free"]), *flags, *out])
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    assert [point.keys() for point in one["recovery"]["curve"]] == [p.keys() for p in two["recovery"]["curve"]]
    for mine, other in zip(one["recovery"]["curve"], two["recovery"]["curve"], strict=True):
        for key, value in mine.items():
            assert other[key] == pytest.approx(value, rel=0.01), (key, mine["step"])
    before = load_file(pruned["free"] / "model.safetensors")
    after = load_file(tmp_path / "two" / "model.safetensors")
    assert all(torch.equal(before[key] == 0, after[key] == 0) for key in before if "proj" in key)
