"""Saving: one file per finished block while a run goes on, then the checkpoint as others load it.

A finished block is written at once, in the dtype it will be loaded in, under names below the layer. At the
end the blocks, the embeddings and the head are put together under the names that `transformers` expects on
disk, one layer at a time, so a model that doesn't fit in memory can be saved too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from secateur.model.checkpoint import Checkpoint
from secateur.model.extras import read_extras, unused
from secateur.model.json_files import Json
from secateur.model.old_keys import with_old_keys
from secateur.model.placeholders import placeholders
from secateur.model.remote_code import copy_code
from secateur.model.shards import TensorSource, write_file, write_weights
from secateur.model.side_files import copy_side_files
from secateur.model.skeleton import empty_model
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import set_parameter
from secateur.workspace.folder import block_file


def write_block(folder: Path, layer: nn.Module, checkpoint: Checkpoint, index: int) -> None:
    """Writes one layer, each tensor in its stored dtype; the file appears whole or not at all."""
    tensors = {
        name: value.detach().to("cpu", checkpoint.stored_dtype(index, name) if value.is_floating_point() else None)
        for name, value in layer.state_dict().items()  # parameters, and buffers that belong to the model
    }
    tensors = {name: value.contiguous() for name, value in tensors.items()}
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
    buffers = dict(template.named_buffers())
    for name, tensor in tensors.items():
        if name in buffers:
            module, _, leaf = name.rpartition(".")
            template.get_submodule(module)._buffers[leaf] = tensor.to(buffers[name].dtype)
        else:
            set_parameter(template, name, tensor.to(dtype))
    return template


def write_checkpoint(
    folder: Path,
    streamed: StreamedModel,
    blocks: Path,
    kept: Sequence[int],
    config: Json,
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
    write_weights(folder, _parts(streamed, blocks, kept, config, around or streamed.surroundings))
    write_rest(folder, streamed.checkpoint, config)


def write_state(
    folder: Path, checkpoint: Checkpoint, state: dict[str, Tensor], dtype: torch.dtype | None = None
) -> None:
    """Writes the same checkpoint with other values: after training, which changes no shape.

    Args:
        folder: gets the files; exists.
        state: the values by their names in memory.
        dtype: of all tensors; default: each as in `checkpoint`.
    """
    config = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    write_weights(folder, _state_parts(checkpoint, state, config, dtype))
    if config.get("tie_word_embeddings", True) and not checkpoint.config.tie_word_embeddings:
        config["tie_word_embeddings"] = False  # the files have a head of their own
    write_rest(folder, checkpoint, config)


def _state_parts(
    checkpoint: Checkpoint, state: dict[str, Tensor], config: Json, dtype: torch.dtype | None
) -> Iterator[TensorSource]:
    """What surrounds the layers, then layer by layer, under the names on disk."""
    dtypes, prefix = checkpoint.target_dtypes, checkpoint.family.layers
    towers = checkpoint.tower_keys
    groups = [[checkpoint.targets[key] for key in checkpoint.by_layer[None] if key not in towers]]
    for index, layer in enumerate(checkpoint.template.get_submodule(prefix).children()):
        groups.append([f"{prefix}.{index}.{name}" for name in layer.state_dict()])
    gone = [placeholders(checkpoint.family, config, index) for index in range(checkpoint.layers)]
    empties = {name: tensor for own in gone for name, tensor in own.items()}

    def removed(empty: bool) -> dict[str, Tensor]:
        named = {name: tensor.to("meta") if empty else tensor for name, tensor in empties.items()}
        return revert_weight_conversion(checkpoint.template, named)

    def part(names: list[str], empty: bool) -> dict[str, Tensor]:
        place = "meta" if empty else "cpu"
        named = {n: state[n].detach().to(place, dtype or dtypes[n]) for n in names if n in state}
        return revert_weight_conversion(checkpoint.template, named)

    for names in groups:
        yield partial(part, names)
    if empties:
        yield removed
    if towers:
        yield lambda empty: stored_tensors(checkpoint, towers, empty)
    yield from _extras(checkpoint)


def write_rest(folder: Path, checkpoint: Checkpoint, config: Json) -> None:
    """config.json, the tokenizer's files and what else goes with the weights."""
    # Where the model lay on this machine is nobody else's business.
    shown = {key: value for key, value in with_old_keys(config).items() if key != "_name_or_path"}
    (folder / "config.json").write_text(json.dumps(shown, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    copy_side_files(checkpoint.path, folder)
    copy_code(checkpoint.path, folder, config)


def _parts(
    streamed: StreamedModel,
    blocks: Path,
    kept: Sequence[int],
    config: Json,
    around: Callable[[bool], dict[str, Tensor]],
) -> Iterator[TensorSource]:
    """The checkpoint's tensors under their names on disk: what surrounds the layers, then layer by layer."""
    checkpoint = streamed.checkpoint
    # Some conversions go by the shapes that a class has: those of the result.
    template = _result_template(checkpoint, config) if checkpoint.family.anatomies else checkpoint.template

    def surroundings(empty: bool) -> dict[str, Tensor]:
        if checkpoint.family.anatomies:  # of which nothing outside the layers changes
            return stored_tensors(checkpoint, checkpoint.by_layer[None], empty)
        return revert_weight_conversion(template, around(empty))

    def layer(position: int, index: int, empty: bool) -> dict[str, Tensor]:
        family = streamed.checkpoint.family
        tensors = {f"{family.layers}.{position}.{name}": t for name, t in read_block(blocks, index).items()}
        tensors |= placeholders(family, config, position)
        named = {name: t.to("meta") if empty else t for name, t in tensors.items()}
        return revert_weight_conversion(template, named)

    yield surroundings
    for position, index in enumerate(kept):
        yield partial(layer, position, index)
    yield from _extras(streamed.checkpoint)


def _result_template(checkpoint: Checkpoint, config: Json) -> PreTrainedModel:
    made = AutoConfig.for_model(**copy.deepcopy(config))
    made.architectures = config["architectures"]
    return empty_model(checkpoint.path, made, torch.float32)


def stored_tensors(checkpoint: Checkpoint, keys: Iterable[str], empty: bool = False) -> dict[str, Tensor]:
    """Tensors as they are on disk, by their names there; `empty`: their shapes and dtypes alone."""
    found = {}
    for key in sorted(keys):
        with safe_open(checkpoint.files[key], framework="pt") as handle:
            tensor = handle.get_tensor(key)
            found[key] = tensor.to("meta") if empty else tensor
    return found


def _extras(checkpoint: Checkpoint) -> Iterator[TensorSource]:
    """What the model doesn't use, as it is."""
    if unused(checkpoint):
        yield lambda empty: {n: t.to("meta") if empty else t for n, t in read_extras(checkpoint).items()}
