"""ONNX and OpenVINO: one graph with a cache, for any batch, length and past, that writes the same tokens."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from secateur.errors import InputError
from secateur.evaluation.loading import load
from secateur.export import onnx, openvino
from secateur.export.graph import cache_shapes, names, plain_masks, prepared
from secateur.model.checkpoint import Checkpoint
from tests.export import cases


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma3", "mixtral", "mistral-window", "qwen2"])
def test_the_module_that_a_graph_is_made_of_computes_the_model(case: str, tmp_path: Path) -> None:
    """In two steps with its own cache and masks, a sequence filled up on the left: the same logits."""
    folder = cases.uneven(case, tmp_path / "model")
    checkpoint, model = Checkpoint.open(folder), load(folder, "cpu", "float32").model
    shapes = cache_shapes(model, checkpoint.family, checkpoint.head_dim)
    assert len(shapes) == 4
    assert shapes[0] == (1, 1)  # no attention there, but tokens are counted
    ids = torch.randint(10, 2000, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        want = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        module = prepared(model)
        empty = [torch.zeros(2, heads, 0, size) for heads, size in shapes for _ in range(2)]
        with plain_masks(model):
            first, *past = module(ids[:, :6], mask[:, :6], empty)
            second, *longer = module(ids[:, 6:], mask, past)
    found = torch.cat([first, second], dim=1)
    assert {tensor.shape[2] for tensor in longer} == {9}
    seen = mask.bool()
    torch.testing.assert_close(found[seen], want[seen], atol=2e-4, rtol=2e-4)


def test_names_are_those_that_clients_know() -> None:
    inputs, outputs = names(1)
    assert inputs == ["input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value"]
    assert outputs == ["logits", "present.0.key", "present.0.value"]


@pytest.mark.parametrize(("form", "module"), [("onnx", onnx), ("openvino", openvino)])
def test_a_package_that_is_missing_is_named(
    form: str, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"install it with: pip install .*\[{form}\]"):
        secateur.export(
            cases.dense("llama", tmp_path / "model"), tmp_path / "out", secateur.make_export({"to": form}), quiet=True
        )
    assert not (tmp_path / "out").exists()


def writes_the_same(case: str, form: str, folder: Path) -> None:
    told = secateur.make_export({"to": form})
    found = secateur.export(cases.uneven(case, folder / "model"), folder / "out", told, quiet=True)
    proof = found["client"]
    assert proof is not None
    assert proof["ran"]
    assert proof["tokens_alike"] == proof["new_tokens"] > 0
    assert proof["max_logit_difference"] is not None
    assert proof["max_logit_difference"] < 1e-4
    held = {file["name"] for file in found["files"]}
    weights = {"onnx": {"model.onnx"}, "openvino": {"openvino_model.xml", "openvino_model.bin"}}[form]
    assert held >= weights | {"config.json", "tokenizer.json"}
    assert "modeling_secateur.py" not in held
    if form == "openvino":  # which says how many heads each cache has, others in each layer
        told = (folder / "out" / "openvino_model.xml").read_text(encoding="utf-8")
        assert not re.search(r'shape="\?,\?,\?,\d+" element_type="f32"', told)


NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


def here(form: str) -> Any:
    missing = [package for package in NEEDS[form] if find_spec(package) is None]
    reason = f"not installed, of the extra {form}: {', '.join(missing)}"
    return pytest.param(form, marks=pytest.mark.skipif(bool(missing), reason=reason))


@pytest.mark.slow
@pytest.mark.parametrize("form", [here("onnx"), here("openvino")])
@pytest.mark.parametrize("case", cases.CASES)
def test_clients_write_the_same_tokens(case: str, form: str, tmp_path: Path) -> None:
    writes_the_same(case, form, tmp_path)
