"""A run continues the user's prompts, and refuses those that leave no room before it cuts anything."""

from __future__ import annotations

from pathlib import Path

import pytest

import secateur
from secateur.errors import InputError
from tests.small import save_tiny


def test_samples_are_of_the_users_prompts(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", context=64)
    (tmp_path / "text.txt").write_text("the thing that they thought of then " * 60, encoding="utf-8")
    prompts = tmp_path / "prompts.txt"
    values = {
        "model": str(model), "sites": ("channel",), "sparsity": 0.25, "calibrate": str(tmp_path / "text.txt"),
        "samples": 4, "length": 32, "speed": False, "explain": False, "prompts": str(prompts),
    }  # fmt: skip
    recipe = secateur.make_recipe(values)
    prompts.write_text("fits\n" + "x" * 80 + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="prompt 2 has 80 tokens and fills the context of 64"):
        secateur.prune(recipe, tmp_path / "out", quiet=True)
    with pytest.raises(InputError, match="evaluate is none"):
        secateur.prune(recipe.model_copy(update={"evaluate": "none"}), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    prompts.write_text("that they\nthen\n", encoding="utf-8")
    report = secateur.prune(recipe, tmp_path / "out", quiet=True)
    assert [sample["prompt"] for sample in report["samples"]] == ["that they", "then"]
