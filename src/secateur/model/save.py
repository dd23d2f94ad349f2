"""Saving: one file per finished block while a run goes on, then the checkpoint as others load it.

A finished block is written at once, in the dtype it will be loaded in, under names below the layer. At the
end the blocks, the embeddings and the head are put together under the names that `transformers` expects on
disk, one shard at a time, so a model that doesn't fit in memory can be saved too.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from secateur.model import modeling_secateur
from secateur.model.checkpoint import Checkpoint
from secateur.model.outer import Outer
from secateur.model.surgery import set_parameter

SHARD_BYTES = 2 << 30
# Everything that a checkpoint needs beside weights and config.json. Code is never copied.
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)


def block_file(folder: Path, index: int) -> Path:
    """Where the finished layer `index` (its place in the original model) is kept."""
    return folder / f"block-{index:05d}.safetensors"


def write_block(folder: Path, layer: nn.Module, checkpoint: Checkpoint, index: int) -> None:
    """Writes one layer, each tensor in its stored dtype; the file appears whole or not at all."""
    tensors = {
        name: parameter.detach().to("cpu", checkpoint.stored_dtype(index, name)).contiguous()
        for name, parameter in layer.named_parameters()
    }
    file = block_file(folder, index)
    partial = file.with_suffix(".partial")
    _save(tensors, partial)
    partial.rename(file)


def read_block(folder: Path, index: int) -> dict[str, Tensor]:
    """The tensors of a finished layer, by their names below it."""
    with safe_open(block_file(folder, index), framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - a handle is no mapping


def fill(template: nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """A layer without weights, given the tensors of a finished one at their own widths."""
    for name, tensor in tensors.items():
        set_parameter(template, name, tensor.to(dtype))
    return template


def write_checkpoint(folder: Path, outer: Outer, blocks: Path, kept: Sequence[int], config: dict[str, Any]) -> None:
    """Writes weights, config.json and what goes with them.

    Args:
        folder: gets the files; exists.
        blocks: folder of `write_block`'s files.
        kept: the layers that stay, in order; they're numbered from 0 in the checkpoint.
        config: the new config.json.
    """
    checkpoint = outer.checkpoint
    _write_shards(folder, _tensors(outer, blocks, kept), _total(outer, blocks, kept))
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for pattern in COMPANIONS:
        for file in checkpoint.path.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    if "auto_map" in config:
        shutil.copyfile(Path(modeling_secateur.__file__), folder / "modeling_secateur.py")


def _tensors(outer: Outer, blocks: Path, kept: Sequence[int]) -> Iterator[dict[str, Tensor]]:
    """The checkpoint's tensors under their names on disk: what surrounds the layers, then layer by layer."""
    checkpoint = outer.checkpoint
    yield revert_weight_conversion(checkpoint.template, outer.surroundings())
    for position, index in enumerate(kept):
        prefix = f"{checkpoint.family.layers}.{position}"
        named = {f"{prefix}.{name}": tensor for name, tensor in read_block(blocks, index).items()}
        yield revert_weight_conversion(checkpoint.template, named)


def _total(outer: Outer, blocks: Path, kept: Sequence[int]) -> int:
    around = sum(t.nbytes for t in outer.surroundings().values())
    return around + sum(block_file(blocks, index).stat().st_size for index in kept)


def _write_shards(folder: Path, parts: Iterator[dict[str, Tensor]], total: int) -> None:
    """One file if everything fits in a shard, else numbered shards and their index."""
    if total <= SHARD_BYTES:
        everything = {name: tensor for part in parts for name, tensor in part.items()}
        _save(everything, folder / "model.safetensors")
        return
    files: list[dict[str, str]] = []
    pending: dict[str, Tensor] = {}
    size = written = 0

    def flush() -> None:
        nonlocal pending, size, written
        name = f"shard-{len(files) + 1:05d}.safetensors"
        _save(pending, folder / name)
        files.append(dict.fromkeys(pending, name))
        written += size
        pending, size = {}, 0

    for part in parts:
        bytes_of_part = sum(t.nbytes for t in part.values())
        if pending and size + bytes_of_part > SHARD_BYTES:
            flush()
        pending.update(part)
        size += bytes_of_part
    flush()
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        (folder / f"shard-{number:05d}.safetensors").rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": written}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        save_file({n: t.contiguous() for n, t in tensors.items()}, file, metadata={"format": "pt"})
    except SafetensorError as error:
        if "os error 28" in str(error):  # the library wraps what the system said
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from None
        raise
    file.chmod(0o666 & ~_umask())  # the library writes through a private temporary file


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
