"""Text that a model writes itself, to calibrate on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import secateur
from secateur.errors import InputError
from secateur.evaluation import own_text
from tests.small import save_tiny


def test_it_is_the_models_own_and_repeatable(shared: Path) -> None:
    torch.set_num_threads(1)
    model = shared / "models" / "stories260K"
    found = secateur.calibrate(model, "self", 6, 48, 1)
    assert found.tokens.shape == (6, 48)
    assert found.held_out.shape == (own_text.HELD_OUT, 48)
    assert (found.tokens[:, 0] == 1).all()
    assert torch.equal(found.tokens, secateur.calibrate(model, "self", 6, 48, 1).tokens)
    other = secateur.calibrate(model, "self", 6, 48, 2)
    assert not torch.equal(found.tokens, other.tokens)
    # Likelier than text of its own tokens in another order.
    loaded = secateur.load(model)
    shuffled = found.tokens[:, torch.randperm(48, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        losses = [float(loaded(ids, labels=ids).loss) for ids in (found.tokens, shuffled)]
    assert losses[0] + 1 < losses[1]


def test_a_run_says_what_it_was_calibrated_on(shared: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    values = {"model": shared / "models" / "stories260K", "sites": "channel", "sparsity": 0.25, "calibrate": "self"}
    values |= {"samples": 4, "length": 32, "evaluate": "none", "speed": False}
    report = secateur.prune(secateur.make_recipe(values), tmp_path / "out", quiet=True, dry_run=True)
    assert (report["calibration"]["source"], report["calibration"].get("general")) == ("self", None)
    assert own_text.NOTE in report["warnings"]
    recipe = secateur.make_recipe(values | {"general_text": 0.5})
    report = secateur.prune(recipe, tmp_path / "out", quiet=True, dry_run=True, overwrite=True)
    assert (report["calibration"]["samples"], report["calibration"]["general"]) == (6, 2)


def test_what_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="BOS"):
        secateur.calibrate(save_tiny(tmp_path / "model", bos_token_id=None), "self", 2, 8)
    monkeypatch.setattr(own_text, "fits_in_memory", lambda parameters: False)
    with pytest.raises(InputError, match="doesn't fit"):
        secateur.calibrate(tmp_path / "model", "self", 2, 8)
