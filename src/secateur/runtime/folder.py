"""A folder of compressed weights: `compressed.json` says how each tensor lies in which file.

The files have the shards of the checkpoint that they come from, with `model` in their names replaced by
`compressed`, so what can't read them doesn't find any weights instead of half of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.errors import InputError
from secateur.runtime.entries import MANIFEST, Entry, check_header, read_header, read_manifest, reason, shown
from secateur.runtime.format import Packed, unpack


def compressed_name(file: str) -> str:
    """The file that stands for a shard of the dense checkpoint."""
    return "compressed" + file.removeprefix("model")


def is_compressed(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


class Reader:
    """Reads the tensors of a folder, one at a time; nothing stays in memory.

    Raises:
        InputError: the folder isn't whole, or its files don't hold what the manifest says (entries.py).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = {entry.name: entry for entry in read_manifest(folder)}
        headers = {}
        for name in self.entries:
            file = self.path(name)
            if not file.is_file():
                raise InputError(f"{folder}: lacks {file.name}, which its {MANIFEST} names")
            if file not in headers:
                headers[file] = read_header(file)
            check_header(self.entries[name], headers[file], file)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def path(self, name: str) -> Path:
        return self.folder / compressed_name(self.entries[name].file)

    @property
    def bytes_on_disk(self) -> int:
        return sum(file.stat().st_size for file in {self.path(name) for name in self.entries})

    def packed(self, name: str) -> Packed:
        """A packed tensor, its leading axes as one.

        Raises:
            InputError: the file is damaged.
        """
        entry = self.entries[name]
        values, bitmap = self._read(name, "values"), self._read(name, "bitmap")
        scales = self._read(name, "scales") if entry.int8 else None
        try:
            return Packed(values, bitmap, entry.shape[-1], entry.dtype, scales, entry.group)
        except InputError as error:
            raise InputError(f"{self.path(name)}: {shown(name)}: {error}") from None

    def dense(self, name: str) -> Tensor:
        """A tensor in its own shape and dtype, however it's stored."""
        entry = self.entries[name]
        return unpack(self.packed(name)).view(entry.shape) if entry.packed else self._read(name)

    def _read(self, name: str, part: str = "") -> Tensor:
        file = self.path(name)
        try:
            with safe_open(file, framework="pt") as handle:
                return handle.get_tensor(f"{name}.{part}" if part else name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: is damaged or cut short ({reason(error)}); make it again") from None
