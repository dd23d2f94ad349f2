"""Attention of one token over what is cached, in bf16 on a CPU, asked so that torch multiplies matrices.

torch's kernel does a single query's products as those of a matrix with one row, which its bf16 products have no fast
way for: 0.3 ms a layer over 300 tokens (9 heads of 64, a core of a Zen 5), where the weights of that layer take 0.2.
Query heads that share a KV head are rows of one query instead: the same sums over the same keys, in 0.03 ms. A head
that shares with none is asked twice, which is still faster than once.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from secateur.errors import InputError

NAME = "secateur_sdpa"  # the implementation of attention, as transformers knows it


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """What `sdpa` of transformers gives, to rounding.

    Args:
        query: (batch, heads, tokens, size).
        key, value: (batch, KV heads, cached, size); consecutive query heads share one.
        attention_mask: (batch or 1, heads or 1, tokens, cached), or None.

    Returns:
        (batch, tokens, heads, size of a value), None.

    Raises:
        InputError: continuous batching, which makes the mask that it needs for `sdpa` by name alone.
    """
    if given.get("cache") is not None:
        raise InputError(
            "continuous batching needs attention as torch has it; first model.set_attn_implementation('sdpa')"
        )
    batch, heads, tokens, size = query.shape
    shared = key.shape[1]
    if not _fits(query, key, given):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    rows = query.reshape(batch, shared, heads // shared, size)
    if heads == shared:
        rows = rows.expand(batch, shared, 2, size)
    if attention_mask is not None and attention_mask.shape[1] != 1:
        attention_mask = attention_mask.reshape(attention_mask.shape[0], shared, heads // shared, -1)
    y = F.scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=given.get("scaling"))
    return y[:, :, : heads // shared].reshape(batch, tokens, heads, value.shape[-1]), None


def _fits(query: Tensor, key: Tensor, given: dict[str, Any]) -> bool:
    """One query, and nothing asked for that only transformers' own function knows."""
    one = query.shape[2] == 1 and query.dtype == torch.bfloat16 and query.is_cpu
    whole = query.shape[1] % key.shape[1] == 0
    asked = {name for name, value in given.items() if value is not None}
    return one and whole and asked.isdisjoint({"position_bias", "softcap"}) and not given.get("dropout")


def speed_up_attention(model: Any) -> bool:
    """Has a model attend this way, if its class leaves attention to transformers and doesn't ask for `sdpa` by name.

    Returns:
        whether it does now. Nothing of it is saved with the model.
    """
    if model.config._attn_implementation != "sdpa" or _asks_by_name(type(model)):
        return False
    if NAME not in AttentionInterface():
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return model.config._attn_implementation == NAME


def _asks_by_name(model_class: type) -> bool:
    """Whether the code of a class treats `sdpa` in a way of its own, or can't be read."""
    try:
        return '"sdpa"' in inspect.getsource(sys.modules[model_class.__module__])
    except OSError:
        return True
