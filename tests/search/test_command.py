"""`secateur search` from a recipe, and with an end to its time: both as flags of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import secateur
from secateur.cli import app as cli
from secateur.config.searching import load_search
from secateur.model.checkpoint import Checkpoint
from tests.search.text import write_text
from tests.small import save_tiny

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that names all that a search needs."""
    folder = tmp_path_factory.mktemp("command")
    save_tiny(folder / "model", context=64)
    write_text(folder, 60)
    told = {"model": str(folder / "model"), "calibrate": str(folder / "text.jsonl"), "samples": 8, "length": 32}
    told |= {"want": ["params=0.9x"], "sites": ["channel", "kv_group"], "trials": 4, "quality": "fast"}
    told |= {"evaluate": "none", "speed": False, "explain": False, "general_text": 0}
    (folder / "search.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    return folder / "search.yaml"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        cli.main(["search", *words, "--json"])
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_a_recipe_says_it_all_and_flags_override_it(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(capsys, "--recipe", str(recipe), "--out", str(tmp_path / "out"))
    assert [wish["wish"] for wish in found["wishes"]] == ["params=0.9x"]
    assert len(found["candidates"]) == 4
    assert {piece["kind"] for piece in found["pieces"]} == {"channel", "kv_group"}
    made = Checkpoint.open(tmp_path / "out")
    assert made.parameters == found["wishes"][0]["got"] <= 0.9 * found["whole"]["params"]
    told = secateur.load_recipe(tmp_path / "out" / "recipe.yaml")
    assert (told.samples, told.quality, told.evaluate) == (8, "fast", "none")

    words = ["--want", "params=0.95x", "--trials", "2", "--sites", "channel", "--minutes", "60"]
    other = run(capsys, "--recipe", str(recipe), *words, "--out", str(tmp_path / "other"))
    assert [wish["wish"] for wish in other["wishes"]] == ["params=0.95x"]
    assert len(other["candidates"]) == 2  # far from an hour
    assert {piece["kind"] for piece in other["pieces"]} == {"channel"}


def test_when_time_is_up_there_is_a_model_all_the_same(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(capsys, "--recipe", str(recipe), "--minutes", "0.0001", "--out", str(tmp_path / "out"))
    assert len(found["candidates"]) == 1
    assert found["wishes"][0]["held"]
    assert Checkpoint.open(tmp_path / "out").parameters == found["wishes"][0]["got"]
    assert all(piece["kl"] >= 0 for piece in found["pieces"])  # every piece was measured before


@pytest.mark.parametrize("name", ["fits-a-phone", "faster-chat", "half-the-memory"])
def test_ready_recipes_are_searches(name: str) -> None:
    told = load_search(RECIPES / f"{name}.yaml", {"model": "m"})
    assert told.wishes
    assert told.sites == load_search(RECIPES / f"{name}.yaml", {"model": "other"}).sites
