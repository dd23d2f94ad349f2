"""Units for the conformance suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from secateur.methods import Units
from tests.methods.activations import gathered, inputs, slopes, weights


@pytest.fixture
def make_units() -> Callable[..., Units]:
    def make(count: int = 8, width: int = 1, out: int = 6, tokens: int = 300, x: Tensor | None = None) -> Units:
        x = inputs(tokens, count * width) if x is None else x
        consumer = weights(out, count * width)
        group = torch.cat([weights(count, 10, seed=2), consumer.T.reshape(count, -1)], 1)
        return Units(consumer, gathered(x), width, group, slopes(group))

    return make
