"""Saving: one file per finished block while a run goes on, then the checkpoint as others load it.

A finished block is written at once, in the dtype it will be loaded in, under names below the layer. At the
end the blocks, the embeddings and the head are put together under the names that `transformers` expects on
disk, one layer at a time, so a model that doesn't fit in memory can be saved too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from secateur.model import modeling_secateur
from secateur.model.checkpoint import Checkpoint
from secateur.model.shards import TensorSource, write_file, write_weights
from secateur.model.side_files import copy_side_files
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import set_parameter
from secateur.workspace.folder import block_file


def write_block(folder: Path, layer: nn.Module, checkpoint: Checkpoint, index: int) -> None:
    """Writes one layer, each tensor in its stored dtype; the file appears whole or not at all."""
    tensors = {
        name: parameter.detach().to("cpu", checkpoint.stored_dtype(index, name)).contiguous()
        for name, parameter in layer.named_parameters()
    }
    file = block_file(folder, index)
    whole = file.with_suffix(".partial")
    write_file(whole, tensors)
    whole.rename(file)


def read_block(folder: Path, index: int) -> dict[str, Tensor]:
    """The tensors of a finished layer, by their names below it; mapped, so nothing is read before it is used."""
    with safe_open(block_file(folder, index), framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - a handle is no mapping


def fill(template: nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """A layer without weights, given the tensors of a finished one at their own widths."""
    for name, tensor in tensors.items():
        set_parameter(template, name, tensor.to(dtype))
    return template


def write_checkpoint(
    folder: Path,
    streamed: StreamedModel,
    blocks: Path,
    kept: Sequence[int],
    config: dict[str, Any],
    around: Callable[[bool], dict[str, Tensor]] | None = None,
) -> None:
    """Writes weights, config.json and what goes with them.

    Args:
        folder: gets the files; exists.
        blocks: folder of `write_block`'s files.
        kept: the layers that stay, in order; they're numbered from 0 in the checkpoint.
        config: the new config.json.
        around: what surrounds the layers, as `StreamedModel.surroundings`, which it is unless given.
    """
    write_weights(folder, _parts(streamed, blocks, kept, around or streamed.surroundings))
    _write_rest(folder, streamed.checkpoint, config)


def write_state(
    folder: Path, checkpoint: Checkpoint, state: dict[str, Tensor], dtype: torch.dtype | None = None
) -> None:
    """Writes the same checkpoint with other values: after training, which changes no shape.

    Args:
        folder: gets the files; exists.
        state: the values by their names in memory.
        dtype: of all tensors; default: each as in `checkpoint`.
    """
    write_weights(folder, _state_parts(checkpoint, state, dtype))
    config = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    _write_rest(folder, checkpoint, config)


def _state_parts(
    checkpoint: Checkpoint, state: dict[str, Tensor], dtype: torch.dtype | None
) -> Iterator[TensorSource]:
    """What surrounds the layers, then layer by layer, under the names on disk."""
    dtypes, prefix = checkpoint.target_dtypes, checkpoint.family.layers
    groups = [[checkpoint.targets[key] for key in checkpoint.by_layer[None]]]
    for index, layer in enumerate(checkpoint.template.get_submodule(prefix).children()):
        groups.append([f"{prefix}.{index}.{name}" for name, _ in layer.named_parameters()])

    def part(names: list[str], empty: bool) -> dict[str, Tensor]:
        place = "meta" if empty else "cpu"
        named = {n: state[n].detach().to(place, dtype or dtypes[n]) for n in names if n in state}
        return revert_weight_conversion(checkpoint.template, named)

    for names in groups:
        yield partial(part, names)


def _write_rest(folder: Path, checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    """config.json, the tokenizer's files and what else goes with the weights."""
    # Where the model lay on this machine is nobody else's business.
    shown = {key: value for key, value in config.items() if key != "_name_or_path"}
    (folder / "config.json").write_text(json.dumps(shown, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    copy_side_files(checkpoint.path, folder)
    if "auto_map" in config:
        shutil.copyfile(Path(modeling_secateur.__file__), folder / "modeling_secateur.py")


def _parts(
    streamed: StreamedModel, blocks: Path, kept: Sequence[int], around: Callable[[bool], dict[str, Tensor]]
) -> Iterator[TensorSource]:
    """The checkpoint's tensors under their names on disk: what surrounds the layers, then layer by layer."""
    template = streamed.checkpoint.template

    def surroundings(empty: bool) -> dict[str, Tensor]:
        return revert_weight_conversion(template, around(empty))

    def layer(position: int, index: int, empty: bool) -> dict[str, Tensor]:
        prefix = f"{streamed.checkpoint.family.layers}.{position}"
        tensors = read_block(blocks, index)
        named = {f"{prefix}.{name}": t.to("meta") if empty else t for name, t in tensors.items()}
        return revert_weight_conversion(template, named)

    yield surroundings
    for position, index in enumerate(kept):
        yield partial(layer, position, index)
