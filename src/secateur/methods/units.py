"""The units of a structured site, as tensors: all that a method may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from secateur.numerics.moments import Moments


@dataclass(frozen=True)
class Units:
    """Equal units (FFN channels, heads, KV groups) and the one Linear that consumes them.

    Args:
        reader: weight of that Linear, (out, units * width); unit u feeds inputs [u*width, (u+1)*width).
        moments: of the inputs of the reader.
        width: inputs per unit: 1 for a channel, head_dim for a head, head_dim * heads for a KV group.
        group: (units, p) fp32, all parameters that a unit owns (rows of the writers, columns of the reader).
        gradients: need -> (units, p), like `group`; see `contract.GRADIENTS`.
        seed: of what is random, another one for each site.
    """

    reader: Tensor
    moments: Moments
    width: int
    group: Tensor
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0

    @property
    def count(self) -> int:
        return self.reader.shape[1] // self.width
