"""What `compress` and `decompress` share: reading, comparing, and what goes with the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from secateur._version import __version__
from secateur.errors import VerificationError
from secateur.model.json_files import read_object
from secateur.model.licence import CARD, header_of
from secateur.model.remote_code import carried, copy_code
from secateur.model.side_files import copy_side_files, is_plain, left_behind
from secateur.report.schema.model import Compressed, CompressionMark, Decompressed
from secateur.runtime.entries import DTYPES, Entry
from secateur.runtime.folder import Reader
from secateur.workspace.ownership import MARK, names_for_report

# What a pruning has written that belongs to the model, not to its report.
BESIDE = ("README.md", "plan.json", "recipe.yaml")
ProgressStep = Callable[..., None]


def read_tensor(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as handle:
        return handle.get_tensor(name)


def compare(reader: Reader, files: dict[str, Path], step: ProgressStep, exact: bool = True) -> tuple[int, int]:
    """Compares every tensor with its dense one, bit for bit; int8 within half a step of its scale.

    Args:
        exact: -0.0 has to come back in packed ones too.

    Returns:
        kept entries of the packed ones, and how many -0.0 came back as 0.0.
    """
    total = negative = 0
    for entry in reader:
        dense, found = read_tensor(files[entry.name], entry.name), reader.dense(entry.name)
        if entry.packed and not exact:
            minus = (dense == 0) & dense.signbit()
            negative += int(minus.sum())
            dense = dense.masked_fill(minus, 0)
        same = _bytes(dense).equal(_bytes(found))
        if entry.packed:
            packed = reader.packed(entry.name)
            total += packed.values.shape[0]
            if entry.int8 and packed.scales is not None:
                W, rounded = (t.view(packed.rows, -1).float() for t in (dense, found))
                width = min(entry.group or packed.columns, packed.columns)
                step_size = packed.scales.repeat_interleave(width, 1)[:, : packed.columns]
                # Half a step, and what the matrix's own dtype rounds off.
                slack = 0.5 * step_size * 1.001 + rounded.abs() * torch.finfo(entry.dtype).eps
                same = bool(((W - rounded).abs() <= slack + torch.finfo(entry.dtype).tiny).all())
        if not same:
            raise VerificationError(f"{entry.name} doesn't read back as it was; nothing was delivered")
        step(entry.name)
    return total, negative


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def stored_bytes(reader: Reader, entry: Entry) -> int:
    """Bytes of the parts of a packed tensor in its file."""
    total = 0
    with safe_open(reader.path(entry.name), framework="pt") as handle:
        for part in ("values", "bitmap", *(("scales",) if entry.int8 else ())):
            found = handle.get_slice(f"{entry.name}.{part}")
            total += int(torch.Size(found.get_shape()).numel()) * DTYPES[found.get_dtype()].itemsize
    return total


def copy_beside(source: Path, target: Path) -> None:
    shutil.copyfile(source / "config.json", target / "config.json")  # read before, so it is what it's called
    copy_side_files(source, target, BESIDE)
    copy_code(source, target, read_object(source / "config.json"))


def not_taken(source: Path) -> list[str]:
    """A note on what `copy_beside` leaves behind; empty where that is nothing."""
    return left_behind(source, BESIDE, carried(source, read_object(source / "config.json").get("auto_map")))


def write_card(folder: Path, source: Path, card: Callable[[dict[str, Any], str], str]) -> None:
    """The folder's card, made from the header and the text of the source's, which may have none."""
    parent = source / CARD
    written = parent.read_text(encoding="utf-8", errors="replace") if is_plain(parent, source) else ""
    text = card(header_of(source), written)
    if text:
        (folder / CARD).write_text(text, encoding="utf-8")


def write_mark(folder: Path, found: Compressed | Decompressed) -> None:
    """The mark by which a later run knows what it may replace."""
    mark: CompressionMark = {"secateur": __version__, "compression": found, "files": names_for_report(folder)}
    (folder / MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
