"""Weights as safetensors files, written tensor by tensor: a model of any size is saved in the memory of one layer.

The library's own `save_file` wants all tensors of a file at once. The format is a length (8 bytes, little
endian), a JSON header with name, dtype, shape and place of each tensor, and then their bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from secateur.report.terminal.listening import tell

SHARD_BYTES = 2 << 30
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in _NAMES.items()}

TensorSource = Callable[[bool], dict[str, Tensor]]


def write_weights(folder: Path, parts: Iterable[TensorSource]) -> None:
    """Writes `model.safetensors`, or numbered shards and their index where that would be larger than a shard.

    Args:
        parts: what goes together into a shard, in order. Each is called first with True, for names, dtypes and
            shapes alone (tensors on the meta device), and later with False for the tensors themselves.
    """
    parts = list(parts)
    layouts = [part(True) for part in parts]
    sizes = [sum(t.nbytes for t in layout.values()) for layout in layouts]
    shards = list(_shards(sizes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        _write(folder / name, [parts[index] for index in shard], [layouts[index] for index in shard])
        weight_map |= {tensor: name for index in shard for tensor in layouts[index]}
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def write_parts(file: Path, parts: Iterable[TensorSource]) -> None:
    """Writes one file; `parts` as for `write_weights`."""
    parts = list(parts)
    _write(file, parts, [part(True) for part in parts])


def write_file(file: Path, tensors: dict[str, Tensor]) -> None:
    """Writes one file."""
    _write(file, [lambda empty: tensors], [tensors])


def _shards(sizes: list[int]) -> Iterator[list[int]]:
    """Consecutive parts that fill a shard; a part that is larger than one has it to itself."""
    shard: list[int] = []
    for index, size in enumerate(sizes):
        if shard and sum(sizes[i] for i in shard) + size > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(index)
    yield shard


def _write(file: Path, parts: list[TensorSource], layouts: list[dict[str, Tensor]]) -> None:
    # Wide entries come first: readers map the file, and want each tensor at a multiple of its entries' size.
    widths = sorted({t.itemsize for layout in layouts for t in layout.values()}, reverse=True)
    plan = [
        (part, [n for n, t in layout.items() if t.itemsize == width], layout)
        for width in widths
        for part, layout in zip(parts, layouts, strict=True)
    ]
    with file.open("wb") as handle:
        handle.write(_header({name: layout[name] for _, names, layout in plan for name in names}))
        for number, (part, names, layout) in enumerate(plan):
            tell(file.name, number, len(plan))
            tensors = part(False) if names else {}
            for name in names:
                tensor = tensors[name]
                assert (tensor.shape, tensor.dtype) == (layout[name].shape, layout[name].dtype), name
                handle.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def _header(layout: dict[str, Tensor]) -> bytes:
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in layout.items():
        begin, end = end, end + tensor.nbytes
        fields[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text
