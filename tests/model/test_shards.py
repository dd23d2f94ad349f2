"""Weights written tensor by tensor are what the library would have written, shard by shard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from secateur.model import shards
from secateur.model.shards import write_file, write_weights

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def tensors(part: int, dtypes: list[torch.dtype] = DTYPES) -> dict[str, Tensor]:
    """Odd sizes, no order of dtypes: what comes after them is out of place unless someone sees to it."""
    generator = torch.Generator().manual_seed(part)
    made = {
        f"{part}.{d}": torch.randint(0, 2, (3, 2 * i + 1), generator=generator).to(d) for i, d in enumerate(dtypes)
    }
    return made | {
        f"{part}.scalar": torch.tensor(1.5),
        f"{part}.empty": torch.zeros(0, 4),
        f"{part}.é": torch.ones(1),
    }


def write(folder: Path, count: int) -> dict[str, Tensor]:
    def part(index: int, empty: bool) -> dict[str, Tensor]:
        return {name: t.to("meta") if empty else t for name, t in tensors(index).items()}

    write_weights(folder, [lambda empty, index=index: part(index, empty) for index in range(count)])
    return {name: t for index in range(count) for name, t in tensors(index).items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def test_one_file(tmp_path: Path) -> None:
    expected = write(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    same(load_file(tmp_path / "model.safetensors"), expected)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as handle:
        assert handle.metadata() == {"format": "pt"}


@pytest.mark.parametrize("parts_in_a_shard", [1, 2, 3])
def test_shards(tmp_path: Path, parts_in_a_shard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(t.nbytes for t in tensors(0).values())
    monkeypatch.setattr(shards, "SHARD_BYTES", parts_in_a_shard * size + size // 2)
    expected = write(tmp_path, 5)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    count = -(-5 // parts_in_a_shard)
    assert files == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
    assert set(index["weight_map"]) == set(expected)
    found = {}
    for file in files:
        held = load_file(tmp_path / file)
        assert all(index["weight_map"][name] == file for name in held)
        found |= held
    same(found, expected)


def test_a_part_larger_than_a_shard_has_one_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    expected = write(tmp_path, 3)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    same({k: v for file in tmp_path.glob("*.safetensors") for k, v in load_file(file).items()}, expected)


def test_every_tensor_lies_at_a_multiple_of_its_width(tmp_path: Path) -> None:
    write(tmp_path, 2)
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert (8 + length) % 8 == 0
    header = json.loads(raw[8 : 8 + length])
    del header["__metadata__"]
    width = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "BOOL": 1}
    assert all(entry["data_offsets"][0] % width[entry["dtype"]] == 0 for entry in header.values())


def test_views_are_written_as_themselves(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    given = {"t": whole.T, "slice": whole[:, 1:3], "bf16": whole.bfloat16()[1:]}
    write_file(tmp_path / "x.safetensors", given)
    same(load_file(tmp_path / "x.safetensors"), {name: t.contiguous() for name, t in given.items()})
