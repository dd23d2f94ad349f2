"""Export as the last stage of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import secateur
from secateur.errors import InputError, UnsupportedModelError
from tests.export.cases import with_tokenizer
from tests.model import tiny
from tests.small import save_tiny


def asked(folder: Path, **more: object) -> secateur.Recipe:
    text = folder.parent / "text.jsonl"
    text.write_text(f'{{"text": "{"The moth is theirs. " * 40}"}}\n', encoding="utf-8")
    values = {"model": str(folder), "sites": "channel", "sparsity": 0.25, "samples": 4, "length": 16}
    values |= {"evaluate": "none", "calibrate": str(text)}
    return secateur.make_recipe({**values, **more})


def test_a_recipe_ends_with_an_export(tmp_path: Path) -> None:
    folder, out = save_tiny(tmp_path / "tiny"), tmp_path / "out"
    recipe = asked(folder, export={"to": "padded", "multiple": 16})
    report = secateur.prune(recipe, out, quiet=True)
    assert report["export"]["to"] == "padded"
    assert report["export"]["parameters_after"] > report["export"]["parameters_before"]
    config = json.loads((out / "export" / "config.json").read_text(encoding="utf-8"))
    assert config["intermediate_size"] == 32
    assert {"export/config.json", "export/model.safetensors"} <= set(report["files"])
    assert [stage["name"] for stage in report["stages"]][-2:] == ["write", "prove"]
    again = secateur.load_recipe(out / "recipe.yaml")
    assert again.export == recipe.export
    secateur.prune(asked(folder), out, overwrite=True, quiet=True)
    assert not (out / "export").exists()


def test_what_can_not_be_exported_is_refused_before_the_run(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    with pytest.raises(InputError, match="use secateur export OUT --to hub"):
        secateur.prune(asked(folder, export={"to": "hub", "repo": "org/name"}), tmp_path / "out", quiet=True)
    pytest.importorskip("gguf")
    relu = with_tokenizer(tiny.save("gpt2-inner", tmp_path / "relu"))
    with pytest.raises(UnsupportedModelError, match="has relu"):
        secateur.prune(asked(relu, export={"to": "gguf"}), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="export key 'typ' is unknown; did you mean 'type'"):
        asked(folder, export={"to": "gguf", "typ": "f16"})
