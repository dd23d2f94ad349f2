"""Any result as its stock class: every layer filled up with zeros to the widest, which computes the same function.

For clients that know stock classes alone. What was cut comes back as zeros, so it is as large and as slow as the
widest layer says.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers.core_model_loading import revert_weight_conversion

from secateur.errors import InputError, UnsupportedModelError
from secateur.export.growing import grow_channels, grow_heads
from secateur.model.architectures import Family
from secateur.model.checkpoint import Checkpoint
from secateur.model.extras import read_extras, unused
from secateur.model.json_files import Json
from secateur.model.save import write_rest
from secateur.model.shards import TensorSource, write_weights
from secateur.model.skeleton import empty_model
from secateur.model.streamed import StreamedModel
from secateur.model.uneven import HEADS, KV_HEADS, UNEVEN_KEYS, Widths, layer_widths, uniform_config


class Stock(NamedTuple):
    """What a checkpoint becomes.

    Args:
        config: of a stock class.
        heads, kv_heads: of every layer's attention.
        own: layer -> the widths that it has, `skip` among them.
        widths: configuration key -> the width that every layer gets.
    """

    config: Json
    heads: int
    kv_heads: int
    own: dict[int, Widths]
    widths: Widths

    def channels(self, index: int) -> int | None:
        """Channels of the feed-forward network of a layer, or None where it has none of its own yet."""
        return next((self.widths[key] for key in self.own[index] if key in self.widths), None)


def layers_of(model: Any, family: Family) -> list[nn.Module]:
    return list(model.get_submodule(family.layers).children())


def widths_of(checkpoint: Checkpoint) -> dict[int, Widths]:
    """Layer -> the widths that it has, and `skip`, from its shapes."""
    family, config, head_dim = checkpoint.family, checkpoint.config, checkpoint.head_dim
    layers = layers_of(checkpoint.template, family)
    return {index: layer_widths(layer, family, config, head_dim) for index, layer in enumerate(layers)}


def stock_of(checkpoint: Checkpoint, multiple: int = 1, square: bool = False) -> Stock:
    """The narrowest stock class that has room for every layer.

    Args:
        multiple: channels of a feed-forward network are a multiple of this many.
        square: attention is as wide as the hidden state.

    Raises:
        UnsupportedModelError: there is none.
    """
    own, config, family = widths_of(checkpoint), checkpoint.config, checkpoint.family
    count = family.experts.count_key if family.experts is not None else None
    widest: Widths = {}
    for layer in own.values():
        for key, value in layer.items():
            if key == count and widest.get(key, value) != value:
                raise UnsupportedModelError(
                    f"{checkpoint.path}: its layers have different numbers of experts, and a router would choose "
                    "those that zeros stand for; it loads with the modelling file alone"
                )
            if key not in ("skip", HEADS, KV_HEADS):
                room = value if key == count else -(-value // multiple) * multiple
                widest[key] = max(widest.get(key, 0), room)
    hidden = int(config.hidden_size)
    for heads, kv_heads in _head_counts(own, config, hidden // checkpoint.head_dim if square else 0):
        if square and heads * checkpoint.head_dim != hidden:
            continue
        both = {HEADS: heads, KV_HEADS: kv_heads} if hasattr(config, KV_HEADS) else {HEADS: heads}
        new = uniform_config(_plain(config), family, {0: widest | both}, checkpoint.head_dim)
        if new is not None:
            sizes = {key: value for key, value in widest.items() if key != count}
            return Stock(new, heads, kv_heads, own, sizes)
    wide = f" in a width of {hidden}" if square else ""
    raise UnsupportedModelError(
        f"{checkpoint.path}: no stock class{wide} has room for {max(own[i].get(HEADS, 0) for i in own)} heads of "
        f"{checkpoint.head_dim}; it loads with the modelling file alone"
    )


def _plain(config: Any) -> Json:
    return {key: value for key, value in config.to_dict().items() if key not in UNEVEN_KEYS}


def _head_counts(own: dict[int, Widths], config: Any, most: int = 0) -> Iterator[tuple[int, int]]:
    """(query heads, KV heads) that have room for every layer, the fewest first; up to those that the configuration
    states, or to `most` query heads where that is more."""
    plain = _plain(config)
    stated = int(plain.get(type(config).attribute_map.get(HEADS, HEADS)) or 1)
    kv_stated = int(plain.get(KV_HEADS) or stated)
    found = [(int(o[HEADS]), int(o.get(KV_HEADS) or o[HEADS])) for o in own.values() if HEADS in o]
    if not found:
        yield stated, kv_stated
        return
    least_kv, least_group = max(kv for _, kv in found), max(heads // kv for heads, kv in found)
    most_kv, most_group = max(least_kv, kv_stated, most), max(least_group, stated // kv_stated, most)
    if not hasattr(config, KV_HEADS):
        yield from ((heads, heads) for heads in range(least_kv, max(most_kv, stated) + 1))
        return
    groups = range(least_group, most_group + 1)
    every = [(kv * group, kv) for kv in range(least_kv, most_kv + 1) for group in groups]
    yield from sorted(pair for pair in every if pair[0] <= max(most_kv * least_group, most_group * least_kv, most))


def stock_template(checkpoint: Checkpoint, stock: Stock) -> Any:
    """The stock model without weights."""
    config = CONFIG_MAPPING[stock.config["model_type"]].from_dict(stock.config)
    return empty_model(checkpoint.path, config, torch.float32)


def padded_layer(
    layer: nn.Module, index: int, checkpoint: Checkpoint, stock: Stock, template: nn.Module
) -> dict[str, Tensor]:
    """The tensors of a layer at the stock widths.

    Args:
        layer: with weights; it's changed.
        template: the same layer of the stock model, without weights.
    """
    family, head_dim = checkpoint.family, checkpoint.head_dim
    grow_heads(layer, family, index, head_dim, stock.heads, stock.kv_heads)
    channels = stock.channels(index)
    if channels is not None:
        grow_channels(layer, family, index, head_dim, channels)
    held, found = layer.state_dict(), {}
    for name, shape in template.state_dict().items():
        found[name] = held.get(name, torch.zeros(shape.shape))
        assert found[name].shape == shape.shape, (index, name, found[name].shape, shape.shape)
    return found


def is_stock(checkpoint: Checkpoint, stock: Stock) -> bool:
    """Whether every layer has the stock widths already."""
    every = {**stock.widths, HEADS: stock.heads, KV_HEADS: stock.kv_heads}
    return all(
        "skip" not in own and all(value == every[key] for key, value in own.items() if key in every)
        for own in stock.own.values()
    )


def write_padded(checkpoint: Checkpoint, folder: Path, multiple: int = 1) -> Stock:
    """Writes the padded checkpoint into a folder that exists, layer by layer.

    Raises:
        InputError: there is nothing to fill up.
        UnsupportedModelError: no stock class has room for the layers.
    """
    stock = stock_of(checkpoint, multiple)
    if is_stock(checkpoint, stock):
        raise InputError(
            f"{checkpoint.path}: all layers have the same widths already; the folder itself is what --to padded makes"
        )
    template = stock_template(checkpoint, stock)
    write_weights(folder, _parts(checkpoint, template, stock))
    write_rest(folder, checkpoint, stock.config)
    return stock


def _parts(checkpoint: Checkpoint, template: Any, stock: Stock) -> Iterator[TensorSource]:
    """What surrounds the layers, then layer by layer, under the names on disk."""
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    family = checkpoint.family
    empty_layers = layers_of(template, family)

    def around(empty: bool) -> dict[str, Tensor]:
        return revert_weight_conversion(template, streamed.surroundings(empty))

    def layer(index: int, empty: bool) -> dict[str, Tensor]:
        shapes = empty_layers[index]
        held = shapes.state_dict() if empty else padded_layer(streamed.load(index), index, checkpoint, stock, shapes)
        named = {
            f"{family.layers}.{index}.{name}": value.to(checkpoint.stored_dtype(index, name))
            for name, value in held.items()
        }
        return revert_weight_conversion(template, named)

    yield around
    for index in range(checkpoint.layers):
        yield partial(layer, index)
    if unused(checkpoint):
        yield lambda empty: {n: t.to("meta") if empty else t for n, t in read_extras(checkpoint).items()}
