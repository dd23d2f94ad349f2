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


def test_an_export_of_a_few_bits_is_judged_as_it_is(tmp_path: Path) -> None:
    """Where layers are alike, transformers reads the file, and the same text has the same perplexity."""
    gguf = pytest.importorskip("gguf", reason="the package gguf, of the extra gguf, isn't installed")
    shape = {"vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "context": 64}
    folder = with_tokenizer(save_tiny(tmp_path / "tiny", **shape))
    text = tmp_path / "judge.txt"
    text.write_text("Two rivers meet below the mill, and neither is in a hurry. " * 20, encoding="utf-8")
    recipe = asked(folder, sparsity=0.5, evaluate=str(text), export={"to": "gguf", "type": "q4_0"}, speed=False)
    report = secateur.prune(recipe, tmp_path / "out", quiet=True)
    found = report["evaluation"]["exported"]
    assert found["type"] == "q4_0"
    assert found["perplexity"] != report["evaluation"]["after"]["perplexity"]
    assert [stage["name"] for stage in report["stages"]][-1] == "evaluate the export"
    [file] = (tmp_path / "out" / "export").glob("*.gguf")
    assert any(tensor.tensor_type.name == "Q4_0" for tensor in gguf.GGUFReader(str(file)).tensors)
    read = secateur.evaluate(file, str(text), speed=False, quiet=True)
    assert found["perplexity"] == pytest.approx(read["perplexity"], rel=0.02)  # which transformers reads as bf16
    floats = secateur.prune(asked(folder, evaluate=str(text), export={"to": "gguf"}), tmp_path / "f16", quiet=True)
    assert "exported" not in floats["evaluation"]


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
