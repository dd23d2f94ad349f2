"""What a folder of compressed weights holds, checked. Whoever made the folder may have put anything into it.

    entries = read_manifest(folder)           # types, ranges and names of compressed.json
    check_header(entries[0], header, file)    # dtypes and shapes in the file that an entry names
    Packed(...)                               # format.py: bitmap, values and scales fit together

Kernels take a `Packed` only, which can't be made of parts that don't fit, and a `Packed` of a file comes from an
entry that has passed the first two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from secateur.errors import InputError
from secateur.runtime.format import FLOATS, MOST_GROUP, VERSION, WORD, group_fits

MANIFEST = "compressed.json"
MOST_BYTES = 1 << 27  # of a manifest: a million tensors take less
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
_MENDING = "make the folder again with secateur compress"


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
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of the dense tensor."""
        return self.size * self.dtype.itemsize

    @property
    def stored(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """Tensor in the file -> its dtype and shape; None: any width."""
        if not self.packed:
            return {self.name: (NAMES[self.dtype], self.shape)}
        columns = self.shape[-1]
        rows = self.size // columns
        found: dict[str, tuple[str, tuple[int | None, ...]]] = {
            f"{self.name}.values": ("I8" if self.int8 else NAMES[self.dtype], (None,)),
            f"{self.name}.bitmap": ("U8", (rows, -(-columns // 8))),
        }
        if self.int8:
            found[f"{self.name}.scales"] = ("F32", (rows, -(-columns // (self.group or columns))))
        return found


class ManifestEntry(TypedDict):
    """A tensor as the manifest has it; the last two of packed ones."""

    file: str
    dtype: str
    shape: list[int]
    form: str
    values: NotRequired[str]
    group: NotRequired[int | None]


def write_manifest(folder: Path, entries: list[Entry]) -> None:
    tensors: dict[str, ManifestEntry] = {}
    for e in entries:
        form = "bitmap" if e.packed else "dense"
        tensors[e.name] = {"file": e.file, "dtype": NAMES[e.dtype], "shape": list(e.shape), "form": form}
        if e.packed:
            tensors[e.name] |= {"values": "I8" if e.int8 else NAMES[e.dtype], "group": e.group}
    text = json.dumps({"version": VERSION, "tensors": tensors}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _plain(file: str) -> str:
    # A file lies in the folder itself: a manifest must not lead anywhere else.
    fine = file.startswith("model") and file.endswith(".safetensors") and file.isprintable() and len(file) <= 200
    if not fine or Path(file).name != file or "\\" in file:
        raise ValueError("isn't the name of a shard, such as model.safetensors")
    return file


class _Tensor(BaseModel):
    """One tensor as the manifest has it. Strict: true is no number, 64.0 and "64" are no whole numbers."""

    model_config = ConfigDict(strict=True)

    file: Annotated[str, AfterValidator(_plain)]
    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
    shape: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(max_length=16)]
    form: Literal["dense", "bitmap"]
    values: str | None = None
    group: int | None = None

    @model_validator(mode="after")
    def _fits(self) -> _Tensor:
        if math.prod(self.shape) * DTYPES[self.dtype].itemsize >= 2**63:
            raise ValueError("shape: has more entries than a file can hold")
        if self.form == "dense":
            return self
        if DTYPES[self.dtype] not in FLOATS:
            raise ValueError(f"dtype: {self.dtype} has no bitmap form; BF16, F16 and F32 have")
        if self.values not in (self.dtype, "I8"):
            raise ValueError(f"values: are {self.dtype} or I8 here")
        if len(self.shape) < 2 or not math.prod(self.shape):
            raise ValueError("shape: of a bitmap has two axes or more, none of them 0")
        if self.group is not None and self.values != "I8":
            raise ValueError(f"group: {self.group} is for I8 values")
        if not group_fits(self.group):
            raise ValueError(f"group: {self.group} isn't a multiple of {WORD} up to {MOST_GROUP}")
        return self


class _Version(BaseModel):
    model_config = ConfigDict(strict=True)

    version: Annotated[int, Field(ge=1)]


class _Manifest(_Version):
    tensors: dict[str, _Tensor]


def read_manifest(folder: Path) -> list[Entry]:
    """What a folder of compressed weights holds.

    Raises:
        InputError: it isn't one, it's damaged, or a newer version wrote it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: has no {MANIFEST}, so it's no folder that secateur compress made")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: is larger than {MOST_BYTES} bytes, so it's no manifest; {_MENDING}")
        text = path.read_bytes()
        version = _Version.model_validate_json(text).version
        if version != VERSION:
            raise InputError(f"{path}: is of version {version}, this Secateur reads version {VERSION}; update it")
        tensors = _Manifest.model_validate_json(text).tensors
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    except ValidationError as error:
        raise InputError(f"{path}: is damaged ({_first(error)}); {_MENDING}") from None
    if not tensors:
        raise InputError(f"{path}: names no tensors; {_MENDING}")
    return [_entry(name, fields) for name, fields in tensors.items()]


def _first(error: ValidationError) -> str:
    """The first fault on one line: which field, what is wrong with it."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(shown(part) for part in fault["loc"])
    what = fault["msg"].removeprefix("Value error, ")
    given = (
        "" if fault["type"] in ("value_error", "json_invalid", "missing") else f", not {shown(repr(fault['input']))}"
    )
    return f"{where}: {what}{given}" if where else what


def shown(value: object) -> str:
    """A name or value that somebody else has chosen, in a line for a terminal."""
    text = repr(value) if not isinstance(value, str) or not value.isprintable() else value
    return text if len(text) <= 100 else text[:97] + "..."


def _entry(name: str, fields: _Tensor) -> Entry:
    packed = fields.form == "bitmap"
    dtype = DTYPES[fields.dtype]
    return Entry(name, fields.file, dtype, fields.shape, packed, packed and fields.values == "I8", fields.group)


Header = Mapping[str, tuple[str, tuple[int, ...]]]  # tensor in a file -> its dtype and shape


def read_header(file: Path) -> Header:
    """Raises InputError for what is no safetensors file; the library checks offsets and lengths."""
    try:
        with safe_open(file, framework="pt") as handle:
            parts = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - it's no mapping
            return {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: is damaged or cut short ({reason(error)}); {_MENDING}") from None


def reason(error: Exception) -> str:
    return shown(next(iter(str(error).splitlines()), type(error).__name__))


def check_header(entry: Entry, header: Header, file: Path) -> None:
    """Refuses an entry whose parts aren't in its file, or are there with another dtype or shape.

    Raises:
        InputError: which part, what it is and what it should be.
    """
    for name, (dtype, shape) in entry.stored.items():
        if name not in header:
            raise InputError(f"{file}: lacks {shown(name)}, which {MANIFEST} names; {_MENDING}")
        has_dtype, has_shape = header[name]
        fits = len(has_shape) == len(shape) and all(a in (b, None) for a, b in zip(shape, has_shape, strict=True))
        if has_dtype != dtype or not fits:
            has, wanted = f"{has_dtype} {_sizes(has_shape)}", f"{dtype} {_sizes(shape)}"
            raise InputError(f"{file}: {shown(name)} is {has}, but {MANIFEST} asks for {wanted}; {_MENDING}")


def _sizes(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('any' if n is None else str(n) for n in shape)}]"
