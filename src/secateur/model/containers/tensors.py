"""The tensors of a quantised folder: what the headers say at once, values when they are asked for, both checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.errors import InputError
from secateur.model.files import read_header, read_index
from secateur.model.json_files import Json

FLOATS = ("F32", "BF16", "F16", "F64")
FLOAT8 = ("F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Header:
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Plain:
    """A tensor of the model as it was before it was quantised.

    Args:
        name: that it has in a plain checkpoint.
        parts: the stored tensors that it takes the place of.
        make: reads those and computes it.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    make: Callable[[], Tensor]


class Tensors:
    """A folder's tensors by their names.

    Raises:
        InputError: as `read_index` and `read_header`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = read_index(folder)
        self.headers: dict[str, Header] = {}
        for file in sorted(set(self.files.values())):
            read_header(file)  # which says what is wrong with a damaged one
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 - a handle is no mapping
                    part = handle.get_slice(name)
                    self.headers[name] = Header(str(part.get_dtype()), tuple(part.get_shape()))

    def __contains__(self, name: str) -> bool:
        return name in self.headers

    def ending(self, end: str, dtypes: Collection[str] | None = None) -> Iterator[str]:
        """What stands before `end`, of every tensor whose name ends so, in order."""
        for name, header in sorted(self.headers.items()):
            if name.endswith(end) and (dtypes is None or header.dtype in dtypes):
                yield name[: len(name) - len(end)]

    def shape(self, name: str, dtypes: Collection[str], dims: int | None = None) -> tuple[int, ...]:
        """The shape of a tensor that has to be there, of one of these dtypes, without an empty axis.

        Raises:
            InputError: it isn't.
        """
        header = self.headers.get(name)
        if header is None:
            raise self.wrong(name, "is missing")
        if header.dtype not in dtypes:
            raise self.wrong(name, f"is of dtype {header.dtype}, not {' or '.join(sorted(dtypes))}")
        if (dims is not None and len(header.shape) != dims) or 0 in header.shape:
            raise self.wrong(name, f"has the shape {list(header.shape)}, not {dims} axes with entries")
        return header.shape

    def expect(self, name: str, dtypes: Collection[str], shape: Sequence[int]) -> None:
        """Refuses a tensor that isn't there with such a dtype and shape."""
        found = self.shape(name, dtypes)
        if found != tuple(shape):
            raise self.wrong(name, f"has the shape {list(found)}, not {list(shape)}")

    def read(self, name: str) -> Tensor:
        """A tensor's values, on the CPU."""
        try:
            with safe_open(self.files[name], framework="pt") as handle:
                return handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise self.wrong(name, f"can't be read ({error})") from None

    def index(self, name: str, entries: int) -> Tensor:
        """A tensor of places below `entries`, as int64."""
        found = self.read(name).to(torch.int64)
        if int(found.min()) < 0 or int(found.max()) >= entries:
            raise self.wrong(name, f"leads outside of {entries} groups")
        return found

    def wrong(self, name: str, what: str) -> InputError:
        return InputError(f"{self.folder}: quantised weights: tensor {name} {what}")

    def bad(self, what: str) -> InputError:
        return InputError(f"{self.folder / 'config.json'}: quantization_config: {what}")

    def number(self, config: Json, key: str, allowed: Collection[int] | range, default: int | None = None) -> int:
        """An integer of the quantisation's configuration.

        Raises:
            InputError: it's missing, no integer, or not allowed.
        """
        found = config.get(key, default)
        if not isinstance(found, int) or isinstance(found, bool) or found not in allowed:
            shown = f"{allowed.start} to {allowed.stop - 1}" if isinstance(allowed, range) else str(sorted(allowed))
            raise self.bad(f"{key} is {str(found)[:40]}, not one of {shown}")
        return found
