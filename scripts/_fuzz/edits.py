"""One change of one file, as plain data that can be kept, read and played again.

    {"op": "set", "file": "config.json", "path": ["hidden_size"], "value": -1}
    {"op": "drop", "file": "compressed.json", "path": ["tensors", "model.norm.weight", "file"]}
    {"op": "text", "file": "recipe.yaml", "value": "a: &a [*a]"}       the whole file
    {"op": "flip", "file": "model.safetensors", "at": 4711, "bit": 3}
    {"op": "cut", "file": "model.safetensors", "at": 100}
    {"op": "tensor", "file": "compressed.safetensors", "name": "x.values", "dtype": "F64", "shape": [3]}

In a safetensors file, `set` and `drop` work on its header, whose length is put right. `tensor` makes a valid file in
which a tensor has another dtype and shape; its bytes are repeated or cut. A value {"$nest": 5000} stands for so many
lists in one another, {"$long": 5000} for so long a text: cases stay small.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

Edit = dict[str, Any]
WIDTHS = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
MOST_BYTES = 1 << 20  # of a tensor that an edit makes


def apply(folder: Path, edits: list[Edit]) -> None:
    """Carries edits out; one that doesn't fit what is there changes nothing."""
    for edit in edits:
        path = folder / edit["file"]
        data = path.read_bytes() if path.is_file() else b""
        try:
            path.write_bytes(_OPERATIONS[edit["op"]](data, edit))
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError):
            continue


def _set(data: bytes, edit: Edit) -> bytes:
    return _in_json(data, edit, lambda where, key: where.__setitem__(key, edit["value"]))


def _drop(data: bytes, edit: Edit) -> bytes:
    return _in_json(data, edit, lambda where, key: where.__delitem__(key))


def _in_json(data: bytes, edit: Edit, change: Any) -> bytes:
    safetensors = edit["file"].endswith(".safetensors")
    header, rest = split(data) if safetensors else (json.loads(data), b"")
    if edit["path"]:
        where = header
        for key in edit["path"][:-1]:
            where = where[key]
        change(where, edit["path"][-1])
    else:
        header = edit["value"]
    text = _encoded(header).encode("utf-8", "surrogatepass")
    return joined(text, rest) if safetensors else text


def _encoded(value: Any) -> str:
    """JSON, with what stands for long and deep values spelled out."""
    text = json.dumps(value)
    for word, make in (("$nest", lambda n: "[" * n + "]" * n), ("$long", lambda n: '"' + "a" * n + '"')):
        mark = f'{{"{word}": '
        while mark in text:
            begin = text.index(mark)
            end = text.index("}", begin)
            text = text[:begin] + make(int(text[begin + len(mark) : end])) + text[end + 1 :]
    return text


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: bytes, rest: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


def _tensor(data: bytes, edit: Edit) -> bytes:
    header, rest = split(data)
    size = math.prod(edit["shape"]) * WIDTHS[edit["dtype"]]
    if not 0 <= size <= MOST_BYTES:
        raise ValueError
    made, parts, end = {}, [], 0
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        begin, stop = fields["data_offsets"]
        part, dtype, shape = rest[begin:stop], fields["dtype"], fields["shape"]
        if name == edit["name"]:
            part = ((part or b"\0") * (1 + size // max(1, len(part))))[:size]
            dtype, shape = edit["dtype"], edit["shape"]
        made[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(part)]}
        parts.append(part)
        end += len(part)
    return joined(json.dumps(made).encode(), b"".join(parts))


def _flip(data: bytes, edit: Edit) -> bytes:
    at = edit["at"] % len(data) if data else 0
    return data[:at] + bytes([data[at] ^ 1 << edit["bit"]]) + data[at + 1 :]


_OPERATIONS = {
    "set": _set,
    "drop": _drop,
    "tensor": _tensor,
    "flip": _flip,
    "cut": lambda data, edit: data[: edit["at"] % (len(data) + 1)],
    "text": lambda data, edit: edit["value"].encode("utf-8", "surrogatepass"),
}
