"""Biases that a refit may use: where an architecture has none but its configuration can switch them on."""

from __future__ import annotations

import torch
from torch import nn

from secateur.model.checkpoint import Checkpoint
from secateur.model.linears import linears_of


def bias_flags(checkpoint: Checkpoint, consumers: frozenset[str]) -> dict[str, str]:
    """Reader Linear -> configuration flag that would give it a bias which it lacks now.

    Args:
        consumers: names of the Linears that are refitted.
    """
    return {
        consumer: flag
        for consumer, flag in checkpoint.family.bias_flags
        if consumer in consumers and not getattr(checkpoint.config, flag, True)
    }


def add_biases(layer: nn.Module, checkpoint: Checkpoint, flags: dict[str, str]) -> int:
    """Gives every Linear that these flags govern a bias of zeros, in place.

    A flag is for all Linears of the consumer's sub-block (q, k, v, o; or gate, up, down), and for all layers.

    Returns:
        How many parameters that adds.
    """
    added = 0
    blocks = {consumer.rpartition(".")[0] for consumer in flags}
    for linear in linears_of(layer, checkpoint.family):
        if linear.name.rpartition(".")[0] in blocks and linear.bias is None:
            module = layer.get_submodule(linear.name)
            rows = linear.shape[0]
            added += rows
            module.bias = nn.Parameter(
                torch.zeros(rows, dtype=linear.stored.dtype, device=linear.stored.device), requires_grad=False
            )
    return added
