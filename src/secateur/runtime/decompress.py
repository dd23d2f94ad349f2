"""`secateur decompress`: the dense checkpoint of a compressed folder."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from secateur.model.files import read_index
from secateur.model.hub import local_folder
from secateur.model.shards import write_parts
from secateur.report.derived_card import original_of
from secateur.report.schema.model import Decompressed
from secateur.runtime.entries import Entry
from secateur.runtime.folder import Reader
from secateur.runtime.transfer import ProgressStep, compare, copy_beside, not_taken, write_card, write_mark
from secateur.system.monitor import Monitor
from secateur.workspace.folder import Workspace
from secateur.workspace.room import check_room

_INDEX = "model.safetensors.index.json"


def decompress(model: str | Path, out: str | Path, *, overwrite: bool = False, quiet: bool = False) -> Decompressed:
    """Writes the dense checkpoint of a compressed folder: the same tensors in files of the same names.

    What was compressed with `values="keep"` comes back bit for bit, but for -0.0, which is 0.0 unless `exact_bits`
    was on. Values that were rounded to int8 come back as what they stand for, in the dtype that they had.

    Args:
        model: the compressed folder.
        out: a new or empty folder.
        overwrite: an earlier result in `out` may be replaced.
        quiet: no progress display.

    Returns:
        model, out, tensors (how many), bytes_before, bytes_after, seconds, warnings.

    Raises:
        InputError: not a compressed folder, or a damaged one.
        VerificationError: what was written doesn't read back as it was.
    """
    source = local_folder(model)
    reader = Reader(source)
    workspace = Workspace(out, overwrite, inputs=[source])
    check_room(workspace.out, sum(entry.nbytes for entry in reader))
    with Monitor(torch.device("cpu"), quiet, ["decompress", "verify"]) as monitor, workspace.open():
        with monitor.stage("decompress", len(reader.entries)) as step:
            for file, entries in _by_file(reader).items():
                write_parts(workspace.final / file, [partial(_dense, reader, entry, step) for entry in entries])
            _write_index(workspace.final, reader)
        with monitor.stage("verify", len(reader.entries)) as step:
            compare(reader, read_index(workspace.final), step)
        copy_beside(source, workspace.final)
        found: Decompressed = {
            "model": str(source),
            "out": str(out),
            "tensors": len(reader.entries),
            "bytes_before": reader.bytes_on_disk,
            "bytes_after": sum(file.stat().st_size for file in workspace.final.glob("*.safetensors")),
            "seconds": round(sum(stage.seconds for stage in monitor.stages), 3),
            "warnings": not_taken(source),
        }
        write_card(workspace.final, source, original_of)
        write_mark(workspace.final, found)
        workspace.deliver()
    return found


def _dense(reader: Reader, entry: Entry, step: ProgressStep, empty: bool) -> dict[str, Tensor]:
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
