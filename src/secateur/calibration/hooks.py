"""Seeing the inputs of a layer's Linears while one batch runs through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from secateur.calibration.experts import expert_inputs
from secateur.calibration.stream import Stream
from secateur.model.linears import submodule

# A Linear's input (..., in), and the residual stream (..., hidden) that its output is added to.
Seen = tuple[Tensor, Tensor | None]


class Enough(Exception):
    """All inputs that were asked for have been seen: the rest of the forward pass isn't needed."""


def watch(
    layer: nn.Module,
    features: Mapping[str, int],
    stream: Stream,
    index: int,
    batch: int,
    device: torch.device,
    see: Callable[[str, Tensor, Tensor | None], None],
    attention_writer: str | None = None,
    routes: dict[str, Tensor] | None = None,
    rows: slice | None = None,
) -> None:
    """Runs one batch through the layer and hands each named Linear's input (..., in) to `see`.

    Args:
        features: Linear's name -> width of its input.
        attention_writer: where given, `see` also gets the residual stream (..., hidden) that the Linear's
            output would be added to: what entered the layer, plus the attention's output once that is there.
        routes: see `calibration.experts`.
        rows: sequences of the batch; None = all.
    """
    waiting, rows = set(features), rows or slice(0, len(stream.batches[batch]))
    residual = stream.states.to(batch, device)[rows] if attention_writer is not None else None

    def seen(name: str, x: Tensor) -> None:
        see(name, x, residual)
        waiting.discard(name)
        if not waiting:
            raise Enough

    def attended(_module: nn.Module, _args: object, output: Tensor) -> None:
        nonlocal residual
        residual = output if residual is None else residual + output

    with ExitStack() as hooks:
        for name in features:
            module = submodule(layer, name)
            if module is not None:
                handle = module.register_forward_pre_hook(lambda _m, args, name=name: seen(name, args[0]))
                hooks.callback(handle.remove)
        writer = submodule(layer, attention_writer) if attention_writer is not None else None
        if writer is not None:
            hooks.callback(writer.register_forward_hook(attended).remove)
        for handle in expert_inputs(layer, set(features), seen, routes):
            hooks.callback(handle.remove)
        try:
            stream.part(layer, index, batch, rows, device)
        except Enough:
            return
    for name in list(waiting):  # an expert that no token of this batch was routed to
        see(name, torch.zeros(0, features[name], device=device), None)
