"""A folder of compressed weights: `compressed.json` says how each tensor lies in which file.

The files have the shards of the checkpoint that they come from, with `model` in their names replaced by
`compressed`, so what can't read them doesn't find any weights instead of half of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.errors import InputError
from secateur.runtime.format import VERSION, Packed, check, unpack

MANIFEST = "compressed.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of the checkpoint.

    Args:
        file: the shard of the dense checkpoint, such as model-00001-of-00002.safetensors.
        packed: stored as `NAME.values`, `NAME.bitmap` and, for int8, `NAME.scales`; otherwise as it is.
        group: columns that share a scale of int8 values; None: the whole row.
    """

    name: str
    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    packed: bool = False
    int8: bool = False
    group: int | None = None

    @property
    def nbytes(self) -> int:
        """Of the dense tensor."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def compressed_name(file: str) -> str:
    """The file that stands for a shard of the dense checkpoint."""
    return "compressed" + file.removeprefix("model")


def is_compressed(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def write_manifest(folder: Path, entries: list[Entry]) -> None:
    tensors: dict[str, Any] = {}
    for e in entries:
        tensors[e.name] = {"file": e.file, "dtype": NAMES[e.dtype], "shape": list(e.shape)}
        if e.packed:
            tensors[e.name] |= {"form": "bitmap", "values": "I8" if e.int8 else NAMES[e.dtype], "group": e.group}
        else:
            tensors[e.name] |= {"form": "dense"}
    text = json.dumps({"version": VERSION, "tensors": tensors}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> list[Entry]:
    """What a folder of compressed weights holds.

    Raises:
        InputError: it isn't one, it's damaged, or a newer version wrote it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: has no {MANIFEST}, so it's no folder that secateur compress made")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["version"]
        if version != VERSION:
            raise InputError(f"{path}: is of version {version}, this Secateur reads version {VERSION}; update it")
        return [_entry(name, fields) for name, fields in found["tensors"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: is damaged; make the folder again with secateur compress") from None


def _entry(name: str, fields: dict[str, Any]) -> Entry:
    file, shape, group = fields["file"], tuple(int(n) for n in fields["shape"]), fields.get("group")
    # A file lies in the folder itself: a manifest must not lead anywhere else.
    if Path(file).name != file or not file.startswith("model") or min(shape, default=0) < 0:
        raise ValueError
    packed = {"bitmap": True, "dense": False}[fields["form"]]
    if group is not None and int(group) < 1:
        raise ValueError
    return Entry(name, file, DTYPES[fields["dtype"]], shape, packed, fields.get("values") == "I8", group)


class Reader:
    """Reads the tensors of a folder, one at a time; nothing stays in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = {entry.name: entry for entry in read_manifest(folder)}
        if not self.entries:
            raise InputError(f"{folder / MANIFEST}: names no tensors")
        for file in sorted({entry.file for entry in self.entries.values()}):
            if not (folder / compressed_name(file)).is_file():
                raise InputError(f"{folder}: lacks {compressed_name(file)}, which its {MANIFEST} names")

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def path(self, name: str) -> Path:
        return self.folder / compressed_name(self.entries[name].file)

    @property
    def bytes_on_disk(self) -> int:
        return sum(file.stat().st_size for file in {self.path(name) for name in self.entries})

    def packed(self, name: str) -> Packed:
        """A packed tensor, its leading axes as one; checked, since kernels trust it blindly.

        Raises:
            InputError: the file is damaged.
        """
        entry = self.entries[name]
        columns = entry.shape[-1]
        values, bitmap = self._read(name, "values"), self._read(name, "bitmap")
        scales = self._read(name, "scales") if entry.int8 else None
        found = Packed(values, bitmap, columns, entry.dtype, scales, entry.group)
        if found.rows * columns != torch.Size(entry.shape).numel():
            raise InputError(f"{self.path(name)}: the bitmap of {name} has another size than {MANIFEST} says")
        check(found, f"{self.path(name)}, {name}")
        return found

    def dense(self, name: str) -> Tensor:
        """A tensor in its own shape and dtype, however it's stored."""
        entry = self.entries[name]
        if entry.packed:
            return unpack(self.packed(name)).view(entry.shape)
        tensor = self._read(name)
        if (tensor.shape, tensor.dtype) != (torch.Size(entry.shape), entry.dtype):
            raise InputError(f"{self.path(name)}: {name} isn't what {MANIFEST} says")
        return tensor

    def _read(self, name: str, part: str = "") -> Tensor:
        try:
            with safe_open(self.path(name), framework="pt") as handle:
                return handle.get_tensor(f"{name}.{part}" if part else name)
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.path(name)}: is damaged or cut short ({reason}); make it again") from None
