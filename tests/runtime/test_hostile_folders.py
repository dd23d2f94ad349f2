"""Compressed folders that nobody would make: refused in one line each, or read; never a crash of the interpreter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from _fuzz import herd
from _fuzz.edits import apply
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur
from secateur.errors import InputError
from secateur.runtime.entries import MANIFEST, read_manifest
from secateur.runtime.format import pack
from secateur.runtime.matrix import Matrix
from tests.runtime.pruned import prune_copy
from tests.small import save_tiny

CASES = 2100
D = "model.layers.0.mlp.down_proj.weight"
FILE = "compressed.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    dense = prune_copy(save_tiny(root / "tiny", hidden_size=64, intermediate_size=172), root / "half")
    secateur.compress(dense, root / "int8", values="int8", group=64, quiet=True)
    return root / "int8"


def test_no_folder_takes_the_interpreter_down(tmp_path: Path) -> None:
    """In processes of their own: every field and header times every hostile value, agreeing lies, flipped bits."""
    root = tmp_path / "root"
    herd.build("compressed", root)
    found = herd.tried("compressed", root, 0, 0, CASES)
    found_too = herd.tried("compressed", root, 1, 0, 200)
    assert found.bad + found_too.bad == []
    assert found.counts.total() == CASES
    assert min(found.counts["ok"] + found_too.counts["ok"], found.counts["refused"]) > 30


def test_a_matrix_of_another_shape_than_its_module_is_refused(folder: Path, tmp_path: Path) -> None:
    """64 x 172 declared as 128 x 86, with everything else put right."""
    change = [{"op": "set", "file": MANIFEST, "path": ["tensors", D, "shape"], "value": [128, 86]}]
    change += [{"op": "tensor", "file": FILE, "name": f"{D}.bitmap", "dtype": "U8", "shape": [128, 11]}]
    change += [{"op": "tensor", "file": FILE, "name": f"{D}.scales", "dtype": "F32", "shape": [128, 2]}]
    case = copied(folder, tmp_path / "case", change)
    for runtime in ("compressed", "auto"):
        with pytest.raises(InputError, match=r"down_proj.weight is 128 x 86, but .* asks for 64 x 172"):
            secateur.load(case, runtime=runtime)


@pytest.mark.parametrize("value", [1, 2, 7, 32, 63, 100, 127, 172, 173, 2**31, "64", 64.0, True, -64, 0, 10**30])
def test_a_group_that_is_none_names_file_and_field(folder: Path, tmp_path: Path, value: Any) -> None:
    change = {"op": "set", "file": MANIFEST, "path": ["tensors", D, "group"], "value": value}
    case = copied(folder, tmp_path / "case", [change])
    with pytest.raises(InputError, match=r"compressed.json: .*down_proj.weight.*group") as refused:
        read_manifest(case)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", ["I8", "F64", "I64", "BOOL"])
def test_a_bitmap_of_what_is_no_float_is_refused(folder: Path, tmp_path: Path, dtype: str) -> None:
    change = [
        {"op": "set", "file": MANIFEST, "path": ["tensors", D, key], "value": dtype} for key in ("dtype", "values")
    ]
    with pytest.raises(InputError, match=f"dtype: {dtype} has no bitmap form"):
        read_manifest(copied(folder, tmp_path / "case", change))


def test_an_input_of_another_width_is_refused() -> None:
    matrix = Matrix(pack(torch.eye(8, 70)))
    for width in (69, 71, 140):
        with pytest.raises(InputError, match=f"an input of width {width} doesn't fit a matrix of 70 columns"):
            matrix.times(torch.ones(2, width))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


FIELDS = ("file", "dtype", "shape", "form", "values", "group")


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(
    fields=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("file", "dtype", "shape", "form", "values", "group"), JSON)
    )
)
def test_any_json_is_a_manifest_or_is_refused_in_one_line(fields: dict[str, Any], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = {"file": "model.safetensors", "dtype": "F32", "shape": [4, 64], "form": "bitmap", "values": "F32"}
    (folder / MANIFEST).write_text(json.dumps({"version": 1, "tensors": {"a": whole | fields}}))
    said = ""
    try:
        read_manifest(folder)
    except InputError as refused:
        said = str(refused)
    assert "\n" not in said


def copied(source: Path, target: Path, change: list[dict[str, Any]]) -> Path:
    shutil.copytree(source, target)
    apply(target, change)
    return target
