"""The tensors of a GGUF file: a checkpoint's, under llama.cpp's names and in its order of rows.

One layer is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import UnsupportedModelError
from secateur.export.gguf.architectures import LARGE, Row, longrope_scale, rotary_dim
from secateur.export.growing import grow_channels, grow_heads
from secateur.export.padded import Stock, layers_of, padded_layer, stock_template
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.model.uneven import HEADS, KV_HEADS
from secateur.report.terminal.listening import telling

SUFFIXES = (".weight", ".bias")
_EMPTY_HEADS = 1  # of layer 0 where its attention is gone: llama.cpp takes the head size from that layer


@dataclass(frozen=True)
class Layout:
    """The widths that each layer has in the file.

    Args:
        architecture: llama.cpp's name.
        stock: the widths of every layer alike, or None where each has its own.
    """

    architecture: str
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    channels: tuple[int, ...]
    stock: Stock | None


def layout_of(checkpoint: Checkpoint, row: Row, stock: Stock, multiple: int) -> Layout:
    """How a checkpoint lies in the file.

    Args:
        stock: the widest widths.
        multiple: channels of each layer are a multiple of this many.
    """
    layers = range(checkpoint.layers)
    if row.uneven is None or _filled_alike(stock, multiple):
        width = next((stock.channels(i) for i in layers if stock.channels(i) is not None), 0) or 0
        every = tuple(stock.channels(i) or width for i in layers)
        return Layout(row.name, (stock.heads,) * len(layers), (stock.kv_heads,) * len(layers), every, stock)
    skips = [set(stock.own[i].get("skip", ())) for i in layers]
    heads = [0 if "attention" in skips[i] else stock.own[i][HEADS] for i in layers]
    kv_heads = [0 if "attention" in skips[i] else int(stock.own[i].get(KV_HEADS) or heads[i]) for i in layers]
    if heads[0] == 0:
        heads[0] = kv_heads[0] = _EMPTY_HEADS
    # A layer whose width is 0 would lose its attention too: it gets channels of zeros.
    width_key = checkpoint.family.ffn.width_key
    channels = [-(-max(1, stock.own[i].get(width_key, 0)) // multiple) * multiple for i in layers]
    return Layout(str(row.uneven), tuple(heads), tuple(kv_heads), tuple(channels), None)


def _filled_alike(stock: Stock, multiple: int) -> bool:
    """Whether all layers have the same widths once each is filled up to the multiple."""
    first = stock.own[0]
    return "skip" not in first and all(
        own.keys() == first.keys()
        and all(
            value == first[key] if key in (HEADS, KV_HEADS) else -(-value // multiple) == -(-first[key] // multiple)
            for key, value in own.items()
        )
        for own in stock.own.values()
    )


def tensors_of(checkpoint: Checkpoint, row: Row, layout: Layout, names: Any) -> Iterator[tuple[str, Tensor]]:
    """(name in the file, values in fp32) of every tensor.

    Args:
        names: the package's map of names.
    """
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    for name, value in streamed.surroundings().items():
        if value.numel():
            yield _named(names, name), _outside(name, value.float(), row)
    streamed.release()
    templates = layers_of(stock_template(checkpoint, layout.stock), checkpoint.family) if layout.stock else None
    for index in telling("layers", range(checkpoint.layers), checkpoint.layers):
        prefix = f"{checkpoint.family.layers}.{index}"
        layer = streamed.load(index)
        if layout.stock is not None and templates is not None:
            held = padded_layer(layer, index, checkpoint, layout.stock, templates[index])
        else:
            held = _own_widths(layer, index, checkpoint, layout)
        for name, value in _split(held, layout, checkpoint):
            given = _given(name, value.float(), index, checkpoint, row, layout)
            if given is not None:
                yield _named(names, f"{prefix}.{name}"), given


def _named(names: Any, name: str) -> str:
    found = names.get_name(name, try_suffixes=SUFFIXES)
    if found is None:
        raise UnsupportedModelError(f"llama.cpp has no place for tensor {name}")
    return str(found)


def _outside(name: str, value: Tensor, row: Row) -> Tensor:
    return value + 1 if row.norm_plus_one and name.endswith("norm.weight") else value


def _own_widths(layer: nn.Module, index: int, checkpoint: Checkpoint, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a layer at widths of its own; matrices that aren't there and must be are zeros."""
    family, head_dim = checkpoint.family, checkpoint.head_dim
    if layout.heads[index]:
        grow_heads(layer, family, index, head_dim, layout.heads[index], layout.kv_heads[index])
    grow_channels(layer, family, index, head_dim, layout.channels[index])
    held = layer.state_dict()
    for name, shape in _matrices(checkpoint, layout, index).items():
        held.setdefault(name, torch.zeros(shape))
    return {name: value for name, value in held.items() if value.numel()}


def _matrices(checkpoint: Checkpoint, layout: Layout, index: int) -> dict[str, tuple[int, ...]]:
    """The matrices of sub-blocks that are gone and must be there, of a Llama's form."""
    hidden, (a, f) = int(checkpoint.config.hidden_size), (checkpoint.family.attention, checkpoint.family.ffn)
    width, kv_width = layout.heads[index] * checkpoint.head_dim, layout.kv_heads[index] * checkpoint.head_dim
    channels = layout.channels[index]
    found: dict[str, tuple[int, ...]] = {}
    skipped = _skipped(checkpoint, index)
    if "attention" in skipped and width:
        rows = {a.q: width, a.k: kv_width, a.v: kv_width}
        found |= {f"{a.path}.{name}.weight": (size, hidden) for name, size in rows.items()}
        found[f"{a.path}.{a.o}.weight"] = (hidden, width)
    if "ffn" in skipped and channels:
        up = ("gate_proj", "up_proj") if f.stacked else f.up  # apart, as Phi-3's are in a Llama
        found |= {f"{f.path}.{name}.weight": (channels, hidden) for name in up}
        found[f"{f.path}.{f.down}.weight"] = (hidden, channels)
    return found


def _skipped(checkpoint: Checkpoint, index: int) -> set[str]:
    entries = checkpoint.config.to_dict().get("per_layer_config") or {}
    entry = entries.get(str(index), entries.get(index, {}))
    return set(entry.get("skip", ()))


def _split(held: dict[str, Tensor], layout: Layout, checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, those apart that llama.cpp has apart: experts' gate and up rows, and Phi-3's matrices where
    they are a Llama's."""
    phi = checkpoint.config.model_type == "phi3" and layout.architecture in ("llama", "deci")
    for name, value in held.items():
        if name.endswith("experts.gate_up_proj"):
            yield from zip(_pair(name, "gate_up_proj", ".weight"), value.chunk(2, dim=1), strict=True)
        elif name.endswith("experts.down_proj"):
            yield f"{name}.weight", value
        elif phi and name.endswith("gate_up_proj.weight"):
            yield from zip(_pair(name, "gate_up_proj"), value.chunk(2), strict=True)
        elif phi and name.endswith("qkv_proj.weight"):
            keys = (value.shape[0] - held["self_attn.o_proj.weight"].shape[1]) // 2
            parts = value.split([value.shape[0] - 2 * keys, keys, keys])
            yield from zip((name.replace("qkv", which) for which in "qkv"), parts, strict=True)
        else:
            yield name, value


def _pair(name: str, fused: str, end: str = "") -> tuple[str, str]:
    return name.replace(fused, "gate_proj") + end, name.replace(fused, "up_proj") + end


def _given(name: str, value: Tensor, index: int, checkpoint: Checkpoint, row: Row, layout: Layout) -> Tensor | None:
    """A tensor of a layer as the file holds it; None: it isn't in there."""
    heads, kv_heads = layout.heads[index], layout.kv_heads[index]
    if layout.architecture == "deci" and heads == 0 and name.startswith("input_layernorm"):
        return None
    module, _, kind = name.rpartition(".")
    if checkpoint.family.layers == "transformer.h" and kind == "weight" and value.dim() == 2:
        value = value.T  # GPT-2 keeps its matrices as (inputs, outputs)
    if row.norm_plus_one and name.endswith("norm.weight"):
        value = value + 1
    leaf = module.rpartition(".")[2]
    if leaf in ("q_proj", "k_proj") and row.rotates == "pairs":
        value = in_pairs(value, heads if leaf == "q_proj" else kv_heads)
    if leaf == "qkv_proj" and longrope_scale(checkpoint.config) != 1.0:
        value = value.clone()
        rotated = value[: (heads + kv_heads) * checkpoint.head_dim].view(heads + kv_heads, checkpoint.head_dim, -1)
        rotated[:, : rotary_dim(checkpoint)] *= longrope_scale(checkpoint.config)
    scaled = "q_norm" if row.name == "gemma3" else "q_proj"
    return value * attention_factor(checkpoint, row) if leaf == scaled else value


def in_pairs(value: Tensor, heads: int) -> Tensor:
    """Rows of q or k whose two halves of each head are rotated together, as neighbours that are."""
    size = value.shape[0] // heads // 2
    return value.reshape(heads, 2, size, *value.shape[1:]).transpose(1, 2).reshape(value.shape)


def attention_factor(checkpoint: Checkpoint, row: Row) -> float:
    """What Gemma's queries are multiplied by, so that llama.cpp's own scale of the scores gives the model's."""
    if row.name not in LARGE:
        return 1.0
    config = checkpoint.config
    theirs = checkpoint.head_dim
    if checkpoint.layers == LARGE[row.name]:
        theirs = config.hidden_size // config.num_attention_heads
    return float((theirs / config.query_pre_attn_scalar) ** 0.5)
