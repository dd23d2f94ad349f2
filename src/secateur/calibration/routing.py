"""Seeing which experts a layer's router chooses for the calibration tokens, and what those experts write."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.hooks import Enough
from secateur.calibration.stream import Stream
from secateur.model.expert_forms import count_of, row_of_experts, written_by_expert
from secateur.numerics.routing import Routing
from secateur.system import distributed


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
    found = Routing(count_of(experts), needs, device)

    for args in arguments_of(layer, path, stream, index, device) if needs else ():
        routed = _routed if row_of_experts(experts).routed else _multiplied
        found.see(args[0].numel() // args[0].shape[-1] // (1 if routed is _routed else count_of(experts)))
        for expert in range(count_of(experts)):
            read, gates = routed(experts, expert, *args)
            norms = None
            if "expert_outputs" in needs:
                norms = written_by_expert(experts, expert, read).float().norm(dim=-1)
            found.add(expert, gates, norms)
    distributed.all_reduce(found.tensors())
    return found


def _routed(_: Any, expert: int, hidden: Tensor, chosen: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """What an expert reads, (tokens, hidden), and what its output is multiplied with, (tokens,)."""
    token, place = (chosen == expert).nonzero(as_tuple=True)
    return hidden.reshape(-1, hidden.shape[-1])[token], gates[token, place]


def _multiplied(experts: Any, expert: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The same where every expert gets all tokens, times the gate, those that aren't its own as zeros (Llama 4)."""
    own = hidden.view(count_of(experts), -1, hidden.shape[-1])[expert]
    read = own[own.any(dim=-1)]
    return read, torch.ones(len(read), device=read.device)


@torch.no_grad()
def arguments_of(
    layer: nn.Module, path: str, stream: Stream, index: int, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """What a module below a layer is called with, one batch of this rank's sequences after the other, or one part of
    a batch where memory doesn't suffice for it; nothing behind it runs.

    Args:
        path: of the module, below the layer, which stands at place `index` of the model.
    """
    seen: list[tuple[Tensor, ...]] = []

    def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args)
        raise Enough

    def entering(batch: int, rows: slice) -> tuple[Tensor, ...]:
        handle = layer.get_submodule(path).register_forward_pre_hook(look)
        try:
            stream.part(layer, index, batch, rows, device)
        except Enough:
            pass
        finally:
            handle.remove()
        return seen.pop()

    for batch in range(len(stream.batches)):
        yield from stream.parts(batch, device, partial(entering, batch))


@torch.no_grad()
def routes_of(mixture: nn.Module, experts: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The router's choice, (tokens, chosen) numbers and gates.

    Args:
        mixture: router and experts, which read `hidden` (sequences, tokens, hidden).
        experts: those below it that are called with the choice.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append((args[1], args[2]))
        raise Enough

    handle = experts.register_forward_pre_hook(look)
    try:
        mixture(hidden)
    except Enough:
        pass
    finally:
        handle.remove()
    return seen[0]
