"""A model as one graph of tensors: token ids, a mask and the cache go in, logits and the longer cache come out.

    input_ids (batch, tokens)   attention_mask (batch, past + tokens)   past_key_values.N.key and .value
    logits (batch, tokens, vocabulary)                                  present.N.key and .value

Batch, tokens and past may be any number, past also none. Positions follow from the mask, so that sequences may be
filled up on the left. A layer without attention has a cache too, one entry wide: it counts tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from secateur.export.padded import layers_of
from secateur.model.architectures import Family
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import stock_class
from secateur.model.linears import has_weight
from secateur.model.sites import head_counts
from secateur.report.terminal.listening import tell

MASKS = ("create_causal_mask", "create_sliding_window_causal_mask")
BATCH, TOKENS, PAST = 2, 5, 3  # of the example that the graph is made by; neither 0 nor 1, which would be constants


class GrowingLayer:
    """The keys and values of a layer, as attributes that modules look at."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values


class GrowingCache:
    """A cache that is nothing but the tensors that went in and the longer ones that come out."""

    is_compileable = False

    def __init__(self, past: list[Tensor]) -> None:
        self.layers = [GrowingLayer(*past[at : at + 2]) for at in range(0, len(past), 2)]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        layer = self.layers[layer_idx]
        layer.keys = torch.cat([layer.keys, keys], dim=2)
        layer.values = torch.cat([layer.values, values], dim=2)
        return layer.keys, layer.values

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return self.layers[layer_idx].keys.shape[2]

    def __len__(self) -> int:
        return len(self.layers)


class WithCache(nn.Module):
    """A causal LM whose cache is a list of tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        cache = GrowingCache(past)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, attention_mask.shape[1] - input_ids.shape[1] :]
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return out.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def _mask(inputs: Tensor, attention_mask: Tensor, window: int | None) -> Tensor:
    """What is added to the scores (batch, 1, tokens, past + tokens): nothing, or the least number there is."""
    tokens, whole = inputs.shape[1], attention_mask.shape[1]
    keys = torch.arange(whole, device=inputs.device)
    queries = torch.arange(tokens, device=inputs.device) + (whole - tokens)
    seen = keys[None, :] <= queries[:, None]
    if window is not None:
        seen = seen & (keys[None, :] > queries[:, None] - window)
    allowed = seen[None, None] & attention_mask.bool()[:, None, None, :]
    return torch.zeros(allowed.shape, dtype=inputs.dtype).masked_fill(~allowed, torch.finfo(inputs.dtype).min)


@contextmanager
def plain_masks(model: Any) -> Iterator[None]:
    """The model's masks made of a few tensor operations, with no look at what is in them."""

    def full(config: Any, inputs_embeds: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        return _mask(inputs_embeds, attention_mask, None)

    def sliding(config: Any, inputs_embeds: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        return _mask(inputs_embeds, attention_mask, config.sliding_window)

    module = sys.modules[stock_class(model.config).__module__]
    with ExitStack() as stack:
        for name, new in zip(MASKS, (full, sliding), strict=True):
            if hasattr(module, name):
                stack.enter_context(patch.object(module, name, new))
        yield


def prepared(model: Any) -> WithCache:
    """The model with attention and experts that become plain products."""
    model.set_attn_implementation("eager")
    if hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "batched_mm"
    return WithCache(model).eval()


def cache_shapes(model: Any, family: Family, head_dim: int) -> list[tuple[int, int]]:
    """(KV heads, head size) of each layer's cache."""
    from secateur.model.architectures import join

    found = []
    for layer in layers_of(model, family):
        whole = has_weight(layer, join(family.attention.path, family.attention.o))
        found.append((head_counts(layer, family, head_dim)[1], head_dim) if whole else (1, 1))
    return found


def example(shapes: list[tuple[int, int]], dtype: torch.dtype, past: int = PAST) -> tuple[Any, ...]:
    """Arguments to make a graph by."""
    ids = torch.ones(BATCH, TOKENS, dtype=torch.int64)
    mask = torch.ones(BATCH, past + TOKENS, dtype=torch.int64)
    cache = [torch.zeros(BATCH, heads, past, size, dtype=dtype) for heads, size in shapes for _ in range(2)]
    return ids, mask, cache


def names(layers: int) -> tuple[list[str], list[str]]:
    """Names of what goes in and of what comes out."""
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    inputs = ["input_ids", "attention_mask", *(f"past_key_values.{part}" for part in parts)]
    return inputs, ["logits", *(f"present.{part}" for part in parts)]


def exported(checkpoint: Checkpoint, model: Any) -> tuple[Any, list[tuple[int, int]]]:
    """The graph by torch.export, with any batch, tokens and past."""
    shapes = cache_shapes(model, checkpoint.family, checkpoint.head_dim)
    batch, tokens, past = (torch.export.Dim.DYNAMIC for _ in range(3))
    dynamic = (
        {0: batch, 1: tokens},
        {0: batch, 1: torch.export.Dim.DYNAMIC},
        [{0: batch, 2: past} for _ in range(2 * len(shapes))],
    )
    module = prepared(model)
    tell("tracing the graph", 0, 1)
    with torch.no_grad(), plain_masks(model):
        program = torch.export.export(module, example(shapes, model.dtype), dynamic_shapes=dynamic, strict=False)
    return program, shapes
