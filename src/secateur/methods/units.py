"""The units of a structured site, or the experts of a layer, as tensors: all that a method may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from secateur.numerics.moments import Moments
from secateur.numerics.routing import Routing


@dataclass(frozen=True)
class Units:
    """Equal units (FFN channels, heads, KV groups) and the one Linear that consumes them.

    Args:
        consumer: weight of that Linear, (out, units * width); unit u feeds inputs [u*width, (u+1)*width).
        moments: of the inputs of the consumer.
        width: inputs per unit: 1 for a channel, head_dim for a head, head_dim * heads for a KV group.
        group: (units, p) fp32, all parameters that a unit owns (rows of the writers, columns of the consumer).
        gradients: need -> (units, p), like `group`; see `contract.GRADIENTS`.
        seed: of what is random, another one for each site.
    """

    consumer: Tensor
    moments: Moments
    width: int
    group: Tensor
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0

    @property
    def count(self) -> int:
        """How many units there are."""
        return self.consumer.shape[1] // self.width


@dataclass(frozen=True)
class ExpertUnits:
    """The experts of one layer, among which a router chooses.

    Args:
        norms: (experts,) fp64 on the CPU, the L2 norm of all parameters that an expert owns, router row included.
        routing: which of them the calibration tokens were routed to.
        seed: of what is random, another one for each layer.
    """

    norms: Tensor
    routing: Routing
    seed: int = 0

    @property
    def count(self) -> int:
        return len(self.norms)
