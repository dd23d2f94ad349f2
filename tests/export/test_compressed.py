"""A recipe that ends with the result stored without its zeros."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import secateur
from secateur.errors import InputError
from tests.export import cases
from tests.runtime.pruned import prune_copy
from tests.small import save_tiny

COMPRESSED = secateur.make_export({"to": "compressed"})


def test_a_recipe_ends_without_zeros(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    told = {"model": str(tmp_path / "model"), "calibrate": "stdlib", "samples": 2, "length": 16, "device": "cpu"}
    told |= {"sparsity": 0.5, "quality": "fast", "evaluate": "none", "speed": False, "export": {"to": "compressed"}}
    recipe = secateur.make_recipe({**told, "sites": "weight"})
    report = secateur.prune(recipe, tmp_path / "out", quiet=True)
    assert report["export"]["to"] == "compressed"
    assert report["export"]["bytes_after"] < 0.9 * report["export"]["bytes_before"]
    assert report["export"]["read_back"] is not None
    assert report["export"]["read_back"]["largest_error"] == 0
    ids = torch.arange(16)[None]
    stored, beside = (secateur.load(tmp_path / "out" / name, device="cpu") for name in ("export", ""))
    torch.testing.assert_close(stored(ids).logits, beside(ids).logits, atol=1e-5, rtol=1e-5)
    for changes in ({"sites": "channel"}, {"sites": "weight", "sparsity": 0.02}):
        with pytest.raises(InputError, match="this makes none, or so few that nothing is saved"):
            secateur.prune(secateur.make_recipe({**told, **changes}), tmp_path / "other", quiet=True)
        assert not (tmp_path / "other").exists()


def test_a_result_is_stored_without_zeros_and_its_card_says_how_to_load_it(tmp_path: Path) -> None:
    model = prune_copy(save_tiny(tmp_path / "tiny"), tmp_path / "half")
    (model / "README.md").write_text("---\nlicense: mit\n---\n\n# Half a model\n", encoding="utf-8")
    found = secateur.export(model, tmp_path / "out", COMPRESSED, quiet=True)
    assert found["architecture"] == "secateur.load"
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert all(words in card for words in ("secateur.load(", "license: mit", "Half a model"))
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["export"] == found
    with pytest.raises(InputError, match="no matrix has enough zeros"):
        secateur.export(save_tiny(tmp_path / "dense"), tmp_path / "other", COMPRESSED, quiet=True)
    assert not (tmp_path / "other").exists()


def test_layers_that_differ_come_back_with_the_code_that_loads_them(tmp_path: Path) -> None:
    uneven = prune_copy(cases.uneven("llama", tmp_path / "uneven"), tmp_path / "half")
    secateur.compress(uneven, tmp_path / "packed", quiet=True)
    secateur.decompress(tmp_path / "packed", tmp_path / "back", quiet=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back", trust_remote_code=True, dtype=torch.float32)
    ids = torch.arange(16)[None]
    expected = secateur.load(tmp_path / "packed", device="cpu")(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
