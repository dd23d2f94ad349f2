"""`secateur compress`: a checkpoint with zeros to one without them.

It goes tensor by tensor, so a model of any size passes through the memory of its largest tensor. What was
written is read again and compared with what it came from before it's delivered.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from secateur.errors import InputError
from secateur.model.files import read_config, read_header, read_index
from secateur.model.hub import local_folder
from secateur.model.shards import write_parts
from secateur.report.derived_card import compressed_card
from secateur.report.schema.model import Compressed, PackedFigures
from secateur.runtime import folder as layout
from secateur.runtime.entries import DTYPES, Entry, write_manifest
from secateur.runtime.folder import Reader, compressed_name
from secateur.runtime.format import FLOATS, check_group, kept, pack, packed_bytes, quantise
from secateur.runtime.transfer import (
    ProgressStep,
    compare,
    copy_beside,
    not_taken,
    read_tensor,
    stored_bytes,
    write_card,
    write_mark,
)
from secateur.system.monitor import Monitor
from secateur.workspace.folder import Workspace
from secateur.workspace.room import check_room

KEPT = Entry("", "", torch.float32, (), True)  # values as they are


def compress(
    model: str | Path,
    out: str | Path,
    *,
    values: str = "keep",
    group: int | None = None,
    exact_bits: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Compressed:
    """Stores a checkpoint's sparse matrices as a bitmap and the values that aren't zero, and the rest as it is.

    docs/format.md describes the files. What was written is read again and compared before `out` appears.

    Args:
        model: a folder of safetensors, `embedded`, or a hub id.
        out: a new or empty folder.
        values: `keep`: as they are, without loss; `int8`: rounded, with a scale for each row.
        group: for int8: a scale for each row and this many columns, a multiple of 64.
        exact_bits: keep -0.0 apart. By default it is a zero like any other, and comes back as 0.0: masks that were
            multiplied with leave a matrix full of them.
        overwrite: an earlier result in `out` may be replaced.
        quiet: no progress display.

    Returns:
        model, out, values, group, exact_bits, negative_zeros (that were taken as zeros), tensors,
        compressed (how many of them), bytes_before and bytes_after of all weights, matrix_bytes_before and
        matrix_bytes_after of those that were compressed, sparsity of these (the fraction of zeros), seconds,
        warnings.

    Raises:
        InputError: nothing in the checkpoint is sparse enough to get smaller, it is compressed already, or a value
            out of range.
        VerificationError: what was written doesn't read back as it was.
    """
    if values not in ("keep", "int8"):
        raise InputError(f"--values {values} is unknown; use keep (without loss) or int8")
    if group is not None and values != "int8":
        raise InputError("--group is for scales of --values int8; add that, or leave --group out")
    check_group(group)
    source = local_folder(model)
    if layout.is_compressed(source):
        raise InputError(f"{source}: is compressed already; secateur decompress gives the dense checkpoint back")
    read_config(source)
    workspace = Workspace(out, overwrite, inputs=[source])
    with Monitor(torch.device("cpu"), quiet, ["look", "compress", "verify"]) as monitor:
        with monitor.stage("look", len(read_index(source))) as step:
            form = replace(KEPT, int8=values == "int8", group=group)
            entries = entries_of(source, form, exact_bits, step)
        check_room(workspace.out, sum(entry.nbytes for entry in entries))
        with workspace.open():
            with monitor.stage("compress", len(entries)) as step:
                write_packed(source, workspace.final, entries, exact_bits, step)
            with monitor.stage("verify", len(entries)) as step:
                figures, negative = proved(source, workspace.final, exact_bits, step)
            found: Compressed = {
                "model": str(source),
                "out": str(out),
                **figures,
                "exact_bits": exact_bits,
                "negative_zeros": negative,
                "seconds": round(sum(stage.seconds for stage in monitor.stages), 3),
                "warnings": not_taken(source),
            }
            write_card(workspace.final, source, partial(compressed_card, found))
            write_mark(workspace.final, found)
            workspace.deliver()
    return found


def entries_of(source: Path, form: Entry, exact: bool, step: ProgressStep) -> list[Entry]:
    """Every tensor of a checkpoint, and whether it gets smaller packed, with the values and the group of `form`.

    Raises:
        InputError: none does.
    """
    files = read_index(source)
    entries = [_look(files[name], name, dtype, form, exact, step) for name, dtype in _all(files)]
    if not any(entry.packed for entry in entries):
        raise InputError(f"{source}: no matrix has enough zeros to get smaller; prune weights first")
    return entries


def write_packed(source: Path, folder: Path, entries: list[Entry], exact: bool, step: ProgressStep) -> None:
    """Writes the tensors of a checkpoint as `entries_of` has found, and copies what goes with them."""
    files = read_index(source)

    def part(entry: Entry, empty: bool) -> dict[str, Tensor]:
        if empty:
            step(entry.name)
        tensors = (
            _packed(entry, files[entry.name], exact)
            if entry.packed
            else {entry.name: read_tensor(files[entry.name], entry.name)}
        )
        return {name: tensor.to("meta") for name, tensor in tensors.items()} if empty else tensors

    for file in sorted({entry.file for entry in entries}):
        parts = [partial(part, entry) for entry in entries if entry.file == file]
        write_parts(folder / compressed_name(file), parts)
    write_manifest(folder, entries)
    copy_beside(source, folder)


def proved(source: Path, folder: Path, exact: bool, step: ProgressStep) -> tuple[PackedFigures, int]:
    """What a folder came to, every tensor of it compared with the checkpoint's; and how many -0.0 came back as 0.0.

    Raises:
        VerificationError: one doesn't read back as it was.
    """
    reader = Reader(folder)
    count, negative = compare(reader, read_index(source), step, exact)
    return _figures(reader, count), negative


def _all(files: dict[str, Path]) -> list[tuple[str, torch.dtype]]:
    """Every tensor and its dtype, file by file in the order in which they lie there."""
    found = []
    for file in sorted(set(files.values())):
        for name, dtype, _ in read_header(file):
            if dtype not in DTYPES:
                raise InputError(f"{file}: {name} is of dtype {dtype}, which isn't one of {', '.join(DTYPES)}")
            if files.get(name) == file:
                found.append((name, DTYPES[dtype]))
    return found


def _look(file: Path, name: str, dtype: torch.dtype, form: Entry, exact: bool, step: ProgressStep) -> Entry:
    """Whether the packed form of a tensor, with the values and the group of `form`, is smaller than the tensor."""
    tensor = read_tensor(file, name)
    entry = Entry(name, file.name, dtype, tuple(tensor.shape))
    step(name)
    if dtype not in FLOATS or tensor.dim() < 2 or not tensor.numel():
        return entry
    W = tensor.view(-1, tensor.shape[-1])
    rows, columns = W.shape
    count = int(torch.count_nonzero(kept(W, exact)))
    if packed_bytes(rows, columns, count, dtype.itemsize) >= entry.nbytes:
        return entry
    return replace(entry, packed=True, int8=form.int8, group=form.group)


def _packed(entry: Entry, file: Path, exact: bool) -> dict[str, Tensor]:
    """The stored parts of a tensor by their names in the file."""
    W = read_tensor(file, entry.name)
    packed = pack(W.view(-1, W.shape[-1]), exact)
    if entry.int8:
        packed = quantise(packed, entry.group)
    parts = {"values": packed.values, "bitmap": packed.bitmap}
    parts |= {} if packed.scales is None else {"scales": packed.scales}
    return {f"{entry.name}.{part}": tensor for part, tensor in parts.items()}


def _figures(reader: Reader, count: int) -> PackedFigures:
    """What is said of a folder.

    Args:
        count: entries that its packed matrices keep.
    """
    packed = [entry for entry in reader if entry.packed]
    before, dense = sum(e.nbytes for e in packed), sum(e.nbytes for e in reader if not e.packed)
    entries_in_all = sum(entry.size for entry in packed)
    after = sum(stored_bytes(reader, entry) for entry in packed)
    return {
        "values": "int8" if packed[0].int8 else "keep",
        "group": packed[0].group,
        "tensors": len(reader.entries),
        "compressed": len(packed),
        "bytes_before": before + dense,
        "bytes_after": after + dense,
        "matrix_bytes_before": before,
        "matrix_bytes_after": after,
        "sparsity": round(1 - count / entries_in_all, 6),
    }
