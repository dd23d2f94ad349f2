"""A LoRA layer for weights with zeros: W + mask * (scale B A), in training as after merging.

Imports peft, so it's imported only where adapters are made.
"""

from __future__ import annotations

from typing import Any

from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from secateur.recovery.masks import BUFFER


class MaskedLora(lora.Linear):
    """peft's LoRA layer with the product masked wherever its Linear has a mask.

    It multiplies by the sum of both weights, not by one after the other: the mask has no low rank.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, **kwargs)
        # peft asks the layer, not the configuration, how its weight lies.
        self.fan_in_fan_out = isinstance(base_layer, Conv1D)

    @property
    def mask(self) -> Tensor | None:
        """Of the Linear below, in the shape of its weight."""
        return self.get_base_layer()._buffers.get(BUFFER)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What merging adds to the weight."""
        delta: Tensor = super().get_delta_weight(adapter)
        return delta if self.mask is None else delta * self.mask

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.mask is None or self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        base: Any = self.get_base_layer()
        weight = base.weight
        for adapter in self.active_adapters:
            weight = weight + self.get_delta_weight(adapter).to(weight.dtype)
        return F.linear(x, weight.T if self.fan_in_fan_out else weight, base.bias)
