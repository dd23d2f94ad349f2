"""Seeing which experts a layer's router chooses for the calibration tokens, and what those experts write."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur import distributed
from secateur.calibration.experts import inner_of
from secateur.calibration.stream import Stream
from secateur.calibration.watch import Enough
from secateur.numerics.routing import Routing


@torch.no_grad()
def routing_of(
    layer: nn.Module, path: str, stream: Stream, index: int, device: torch.device, needs: frozenset[str]
) -> Routing:
    """One pass over the calibration sequences, which ends at the experts; summed over the ranks.

    Args:
        path: of the experts module below the layer, which stands at place `index` of the model.
        needs: see `numerics.routing.ROUTING`.
    """
    experts: Any = layer.get_submodule(path)
    found = Routing(len(experts.down_proj), needs, device)

    def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        hidden, chosen, gates = args
        flat = hidden.reshape(-1, hidden.shape[-1])
        found.see(len(flat))
        for expert in range(len(experts.down_proj)):
            token, place = (chosen == expert).nonzero(as_tuple=True)
            norms = None
            if "expert_outputs" in needs:
                output = nn.functional.linear(inner_of(experts, expert, flat[token]), experts.down_proj[expert])
                norms = output.float().norm(dim=-1)
            found.add(expert, gates[token, place], norms)
        raise Enough

    handle = experts.register_forward_pre_hook(look)
    try:
        for batch in range(len(stream.batches) if needs else 0):
            try:
                stream.forward(layer, index, batch, device)
            except Enough:
                continue
    finally:
        handle.remove()
    distributed.all_reduce(found.tensors())
    return found
