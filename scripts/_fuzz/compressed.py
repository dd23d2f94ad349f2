"""Compressed folders that nobody would make: fields and headers of a wrong type, sign or size, and flipped bits."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _fuzz.edits import WIDTHS, Edit, split

MANIFEST, FILE = "compressed.json", "compressed.safetensors"
# Of another type, sign or size than anything in a manifest or a header.
HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 7, 8, 32, 63, 64, 65, 100, 127, 128, 172, 192, 1 << 20, 2**31, 2**32, 2**40, 2**62),
    *(2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 64.0, 0.5, 1e308, float("nan"), float("inf"), "", "64", "I8", "F64"),
    *("\x1b[31m\x07", "../x", "\ud800", [], [0], [-1], [[]], {}, {"a": 1}, {"$nest": 200}, {"$long": 5000}),
)
SHAPES: tuple[Any, ...] = (
    *([], [1], [0, 0], [2**62, 0], [1, 1], [2**32, 2**32], [2**63, 1], [2**31, 2**31, 4], [-1, -16], [64.0, 1]),
    *([True, True], ["16", "72"], [16, 72], [72, 16], [8, 144], [1, 1152], [1152, 1], [2, 8, 72], [16, 73], [16, 71]),
    *([17, 72], [1] * 40, [None, 1], [2**61, 8]),
)
FIELDS = ("file", "dtype", "shape", "form", "values", "group")
FILES = (
    "../compressed.safetensors",
    "/etc/passwd",
    "model\0.safetensors",
    "model" + "a" * 300 + ".safetensors",
    "model",
)


def enumerated(base: Path) -> Iterator[list[Edit]]:
    """Every field of the manifest and of the headers times every hostile value."""
    manifest = json.loads((base / MANIFEST).read_text())
    header, _ = split((base / FILE).read_bytes())
    packed = [name for name, fields in manifest["tensors"].items() if fields["form"] == "bitmap"]
    dense = next(name for name in manifest["tensors"] if name not in packed)
    picked = (packed[-1], dense)
    for value in HOSTILE:
        yield [_set(MANIFEST, [], value)]
        yield [_set(MANIFEST, ["version"], value)]
        yield [_set(MANIFEST, ["tensors"], value)]
        for name in picked:
            yield [_set(MANIFEST, ["tensors", name], value)]
            yield from ([_set(MANIFEST, ["tensors", name, field], value)] for field in FIELDS)
    for name, shape in itertools.product(picked, SHAPES):
        yield [_set(MANIFEST, ["tensors", name, "shape"], shape)]
    for name, file in itertools.product(picked, FILES):
        yield [_set(MANIFEST, ["tensors", name, "file"], file)]
    parts = [f"{packed[-1]}.{part}" for part in ("values", "bitmap", "scales")]
    for part in [*(part for part in parts if part in header), dense]:
        yield [{"op": "drop", "file": FILE, "path": [part]}]
        for value, field in itertools.product((*HOSTILE, *SHAPES), ("dtype", "shape", "data_offsets")):
            yield [_set(FILE, [part, field], value)]
        for dtype, shape in itertools.product(WIDTHS, (header[part]["shape"], [])):
            yield [_tensor(part, dtype, shape)]


def drawn(base: Path, choice: random.Random) -> list[Edit]:
    """A few changes that may agree with each other: a shape or a group in both files, a dtype with its values."""
    manifest = json.loads((base / MANIFEST).read_text())["tensors"]
    header, _ = split((base / FILE).read_bytes())
    size = (base / FILE).stat().st_size
    name = choice.choice(list(manifest))
    kind = choice.randrange(6)
    if kind == 0:  # the data, or the header
        place = choice.choice((200, size))
        return [_flip(FILE, choice.randrange(place), choice.randrange(8)) for _ in range(choice.choice((1, 1, 3)))]
    if kind == 1:
        return [_flip(MANIFEST, choice.randrange(1 << 20), choice.randrange(8))]
    if kind == 2:
        return [{"op": "cut", "file": choice.choice((MANIFEST, FILE)), "at": choice.randrange(1 << 20)}]
    packed = [name for name, fields in manifest.items() if fields["form"] == "bitmap"]
    name = choice.choice(packed)
    rows, columns = manifest[name]["shape"]
    if kind == 3:  # groups, with as many scales as they ask for
        group = choice.choice((1, 2, 7, 32, 63, 64, 65, 72, 100, 128, 2**20, 2**31))
        shape = [rows, -(-columns // group)]
        return [_set(MANIFEST, ["tensors", name, "group"], group), _tensor(f"{name}.scales", "F32", shape)]
    if kind == 4:  # another shape of as many entries, in both files
        rows, columns = choice.choice(((rows * columns // 8, 8), (rows // 2, columns * 2), (1, rows * columns)))
        bitmap = _tensor(f"{name}.bitmap", "U8", [rows, -(-columns // 8)])
        scales = _tensor(f"{name}.scales", "F32", [rows, -(-columns // 64)])
        return [_set(MANIFEST, ["tensors", name, "shape"], [rows, columns]), bitmap, scales]
    dtype, form = choice.choice(list(WIDTHS)), choice.choice(("I8", "F32", "BF16", None))
    count = header[f"{name}.values"]["shape"][0]
    edits = [_tensor(f"{name}.values", choice.choice((dtype, "I8", "F32")), [count + choice.choice((0, 0, 1, -1))])]
    return [
        *edits,
        _set(MANIFEST, ["tensors", name, "dtype"], dtype),
        _set(MANIFEST, ["tensors", name, "values"], form),
    ]


def _set(file: str, path: list[Any], value: Any) -> Edit:
    return {"op": "set", "file": file, "path": path, "value": value}


def _tensor(name: str, dtype: str, shape: list[int]) -> Edit:
    return {"op": "tensor", "file": FILE, "name": name, "dtype": dtype, "shape": shape}


def _flip(file: str, at: int, bit: int) -> Edit:
    return {"op": "flip", "file": file, "at": at, "bit": bit}
