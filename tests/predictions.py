"""Logits of two models for a few tokens, and their distributions the slow way."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOKENS, VOCABULARY = 7, 11


def softmax(row: Tensor, temperature: float) -> list[float]:
    powers = [math.exp(float(x) / temperature) for x in row.double()]
    return [p / sum(powers) for p in powers]


def two_logits() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(TOKENS, VOCABULARY) * 2, torch.randn(TOKENS, VOCABULARY) * 2
