"""Units that go: the layer is left with the weights of those that the cut names, and no others."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from secateur.calibration.walk import walk
from secateur.cut.units import UnitRules, cut_units
from secateur.methods import METHODS
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from tests.model import tiny


def test_what_stays_is_what_the_cut_names(tmp_path: Path) -> None:
    streamed = StreamedModel(
        Checkpoint.open(tiny.save("llama", tmp_path / "model")), torch.device("cpu"), torch.float32
    )
    rules = UnitRules(METHODS["magnitude"], lambda site: site.units // 4, lambda site: None, False, frozenset())
    for block in walk(streamed, tiny.tokens(3)):
        before = copy.deepcopy(block.layer.mlp)
        (cut,) = cut_units(block, frozenset({"channel"}), rules)
        keep = list(cut.keep)
        assert len(keep) == 11
        assert cut.scores is not None
        assert min(cut.scores[unit] for unit in keep) >= max(
            score for unit, score in enumerate(cut.scores) if unit not in keep
        )
        after = block.layer.mlp
        assert torch.equal(after.gate_proj.weight, before.gate_proj.weight[keep])
        assert torch.equal(after.up_proj.weight, before.up_proj.weight[keep])
        assert torch.equal(after.down_proj.weight, before.down_proj.weight[:, keep])
