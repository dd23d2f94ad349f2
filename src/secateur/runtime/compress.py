"""`secateur compress` and `secateur decompress`: a checkpoint with zeros to one without them, and back.

Both go tensor by tensor, so a model of any size passes through the memory of its largest tensor. What was
written is read again and compared with what it came from before it's delivered.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

import secateur
from secateur.errors import InputError, ResourceError, VerificationError
from secateur.model.files import read_config, read_header, read_index
from secateur.model.hub import local_folder
from secateur.model.save import COMPANIONS
from secateur.model.shards import write_parts
from secateur.progress import Monitor
from secateur.runtime import folder as layout
from secateur.runtime.folder import DTYPES, Entry, Reader, compressed_name, write_manifest
from secateur.runtime.format import FLOATS, check_group, kept, pack, packed_bytes, quantise
from secateur.workspace import MARK, Workspace

# What lies beside the weights and belongs to the model, not to a run's report.
BESIDE = (*COMPANIONS, "config.json", "modeling_secateur.py", "plan.json", "recipe.yaml")
_INDEX = "model.safetensors.index.json"
Step = Callable[..., None]


def compress(
    model: str | Path,
    out: str | Path,
    *,
    values: str = "keep",
    group: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Stores a checkpoint's sparse matrices as bitmap and kept values (docs/format.md), the rest as it is.

    Args:
        model: a folder of safetensors, `embedded`, or a hub id.
        out: a new folder.
        values: `keep`: as they are, without loss; `int8`: rounded, with a scale for each row.
        group: for int8: a scale for each row and this many columns, a multiple of 64.
        overwrite: an earlier result in `out` may be replaced.

    Returns:
        model, out, values, group, tensors, compressed (how many), bytes_before and bytes_after of all weights,
        matrix_bytes_before and matrix_bytes_after of those that were compressed, sparsity of these, seconds.

    Raises:
        InputError: nothing in the checkpoint is sparse enough to get smaller, or a value out of range.
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
    files = read_index(source)
    workspace = Workspace(out, overwrite)
    with Monitor(torch.device("cpu"), quiet, ["look", "compress", "verify"]) as monitor:
        with monitor.stage("look", len(files)) as step:
            entries = [_look(files[name], name, dtype, values == "int8", group, step) for name, dtype in _all(files)]
        if not any(entry.packed for entry in entries):
            raise InputError(f"{source}: no matrix has enough zeros to get smaller; prune weights first")
        _check_room(workspace.out, sum(entry.nbytes for entry in entries))
        with workspace.open():
            with monitor.stage("compress", len(entries)) as step:
                _write_compressed(workspace.final, entries, files, step)
            with monitor.stage("verify", len(entries)) as step:
                count = _compare(Reader(workspace.final), files, step)
            _beside(source, workspace.final)
            found = _figures(entries, count, Reader(workspace.final), values, group)
            found = {"model": str(source), "out": str(out)} | found
            found["seconds"] = round(sum(stage.seconds for stage in monitor.stages), 3)
            _mark(workspace.final, found)
            workspace.deliver()
    return found


def decompress(
    model: str | Path, out: str | Path, *, overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """The dense checkpoint of a compressed folder: the same tensors, bit for bit, in files of the same names.

    Values that were rounded to int8 come back as what they stand for, in the dtype that they had.

    Args:
        out: a new folder.
        overwrite: an earlier result in `out` may be replaced.

    Returns:
        model, out, tensors, bytes_before, bytes_after, seconds.

    Raises:
        InputError: not a compressed folder, or a damaged one.
    """
    source = local_folder(model)
    reader = Reader(source)
    workspace = Workspace(out, overwrite)
    _check_room(workspace.out, sum(entry.nbytes for entry in reader))
    with Monitor(torch.device("cpu"), quiet, ["decompress", "verify"]) as monitor, workspace.open():
        with monitor.stage("decompress", len(reader.entries)) as step:
            for file, entries in _by_file(reader).items():
                write_parts(workspace.final / file, [partial(_dense, reader, entry, step) for entry in entries])
            _write_index(workspace.final, reader)
        with monitor.stage("verify", len(reader.entries)) as step:
            _compare(reader, read_index(workspace.final), step)
        _beside(source, workspace.final)
        found: dict[str, Any] = {"model": str(source), "out": str(out), "tensors": len(reader.entries)}
        found["bytes_before"] = reader.bytes_on_disk
        found["bytes_after"] = sum(file.stat().st_size for file in workspace.final.glob("*.safetensors"))
        found["seconds"] = round(sum(stage.seconds for stage in monitor.stages), 3)
        _mark(workspace.final, found)
        workspace.deliver()
    return found


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


def read_tensor(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as handle:
        return handle.get_tensor(name)


def _look(file: Path, name: str, dtype: torch.dtype, int8: bool, group: int | None, step: Step) -> Entry:
    """Whether the packed form of a tensor is smaller than the tensor."""
    tensor = read_tensor(file, name)
    entry = Entry(name, file.name, dtype, tuple(tensor.shape))
    step(name)
    if dtype not in FLOATS or tensor.dim() < 2 or not tensor.numel():
        return entry
    W = tensor.view(-1, tensor.shape[-1])
    rows, columns = W.shape
    count = int(torch.count_nonzero(kept(W)))
    if packed_bytes(rows, columns, count, dtype.itemsize) >= entry.nbytes:
        return entry
    return replace(entry, packed=True, int8=int8, group=group)


def _packed(entry: Entry, file: Path) -> dict[str, Tensor]:
    """The stored parts of a tensor by their names in the file."""
    W = read_tensor(file, entry.name)
    packed = pack(W.view(-1, W.shape[-1]))
    if entry.int8:
        packed = quantise(packed, entry.group)
    parts = {"values": packed.values, "bitmap": packed.bitmap}
    parts |= {} if packed.scales is None else {"scales": packed.scales}
    return {f"{entry.name}.{part}": tensor for part, tensor in parts.items()}


def _write_compressed(folder: Path, entries: list[Entry], files: dict[str, Path], step: Step) -> None:
    def part(entry: Entry, empty: bool) -> dict[str, Tensor]:
        if empty:
            step(entry.name)
        tensors = (
            _packed(entry, files[entry.name])
            if entry.packed
            else {entry.name: read_tensor(files[entry.name], entry.name)}
        )
        return {name: tensor.to("meta") for name, tensor in tensors.items()} if empty else tensors

    for file in sorted({entry.file for entry in entries}):
        parts = [partial(part, entry) for entry in entries if entry.file == file]
        write_parts(folder / compressed_name(file), parts)
    write_manifest(folder, entries)


def _dense(reader: Reader, entry: Entry, step: Step, empty: bool) -> dict[str, Tensor]:
    if empty:
        return {entry.name: torch.empty(entry.shape, dtype=entry.dtype, device="meta")}
    step(entry.name)
    return {entry.name: reader.dense(entry.name)}


def _by_file(reader: Reader) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in reader:
        found.setdefault(entry.file, []).append(entry)
    return found


def _write_index(folder: Path, reader: Reader) -> None:
    """The index of shards, where there are several."""
    if len(_by_file(reader)) < 2:
        return
    total = sum(entry.nbytes for entry in reader)
    weight_map = {entry.name: entry.file for entry in sorted(reader, key=lambda entry: entry.name)}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    (folder / _INDEX).write_text(text + "\n", encoding="utf-8")


def _compare(reader: Reader, files: dict[str, Path], step: Step) -> int:
    """Compares every tensor with its dense one, bit for bit; int8 within half a step of its scale.

    Returns:
        kept entries of the packed ones.
    """
    total = 0
    for entry in reader:
        dense, found = read_tensor(files[entry.name], entry.name), reader.dense(entry.name)
        same = _bytes(dense).equal(_bytes(found))
        if entry.packed:
            packed = reader.packed(entry.name)
            total += packed.values.shape[0]
            if entry.int8 and packed.scales is not None:
                W, rounded = (t.view(packed.rows, -1).float() for t in (dense, found))
                width = entry.group or packed.columns
                step_size = packed.scales.repeat_interleave(width, 1)[:, : packed.columns]
                # Half a step, and what the matrix's own dtype rounds off.
                slack = 0.5 * step_size * 1.001 + rounded.abs() * torch.finfo(entry.dtype).eps
                same = bool(((W - rounded).abs() <= slack + torch.finfo(entry.dtype).tiny).all())
        if not same:
            raise VerificationError(f"{entry.name} doesn't read back as it was; nothing was delivered")
        step(entry.name)
    return total


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _figures(
    entries: list[Entry], count: int, reader: Reader, values: str, group: int | None
) -> dict[str, Any]:
    packed = [entry for entry in entries if entry.packed]
    before, dense = sum(e.nbytes for e in packed), sum(e.nbytes for e in entries if not e.packed)
    entries_in_all = sum(int(torch.Size(entry.shape).numel()) for entry in packed)
    after = sum(stored_bytes(reader, entry) for entry in packed)
    return {
        "values": values,
        "group": group,
        "tensors": len(entries),
        "compressed": len(packed),
        "bytes_before": before + dense,
        "bytes_after": after + dense,
        "matrix_bytes_before": before,
        "matrix_bytes_after": after,
        "sparsity": round(1 - count / entries_in_all, 6),
    }


def stored_bytes(reader: Reader, entry: Entry) -> int:
    """Bytes of the parts of a packed tensor in its file."""
    total = 0
    with safe_open(reader.path(entry.name), framework="pt") as handle:
        for part in ("values", "bitmap", *(("scales",) if entry.int8 else ())):
            found = handle.get_slice(f"{entry.name}.{part}")
            total += int(torch.Size(found.get_shape()).numel()) * DTYPES[found.get_dtype()].itemsize
    return total


def _beside(source: Path, target: Path) -> None:
    for pattern in BESIDE:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, target / file.name)


def _mark(folder: Path, found: dict[str, Any]) -> None:
    """The mark by which a later run knows what it may replace."""
    files = sorted({MARK, *(file.name for file in folder.iterdir())})
    mark = {"secateur": secateur.__version__, "compression": found, "files": files}
    (folder / MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")


def _check_room(out: Path, need: int) -> None:
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise ResourceError(
            f"{out}: the disk has {free / 1e9:.1f} GB free, this needs up to {need / 1e9:.1f} GB; "
            "free some space or choose another --out"
        )


