"""Inputs of expert matrices, which have no module of their own to hook.

The experts of a layer live in two 3-D parameters and one forward loop. The inputs of each expert are
recomputed here from what that loop is called with: the hidden states and the router's choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.model.expert_forms import count_of, inner_of, inner_with, row_of_experts

_NAME = re.compile(r"^(.*)\.(\w+)\[(\d+)\]$")


def expert_inputs(
    layer: nn.Module,
    names: set[str],
    see: Callable[[str, Tensor], None],
    routes: dict[str, Tensor] | None = None,
) -> list[RemovableHandle]:
    """Hooks the experts modules that `names` (such as `mlp.experts.down_proj[3]`) belong to.

    Args:
        see: called with (name, inputs (tokens routed to that expert, in)).
        routes: path of the experts -> the router's choice. One that is in there is followed instead of the
            layer's own, so that two models can be seen at the same tokens; else the layer's own is put in.
    """
    routes = {} if routes is None else routes
    wanted: dict[str, dict[tuple[str, int], str]] = {}
    for name in names:
        match = _NAME.match(name)
        if match:
            wanted.setdefault(match[1], {})[(match[2], int(match[3]))] = name
    return [
        layer.get_submodule(path).register_forward_pre_hook(_hook(path, parts, see, routes), with_kwargs=True)
        for path, parts in wanted.items()
    ]


def written_by(module: Any, up: Tensor, down: Tensor, x: Tensor) -> Tensor:
    """What an expert of these matrices writes, (tokens, hidden), where it reads x (tokens, hidden).

    Args:
        module: the experts among which it would be.
    """
    return nn.functional.linear(inner_with(module, up, x), down)


def _hook(
    path: str, parts: dict[tuple[str, int], str], see: Callable[[str, Tensor], None], routes: dict[str, Tensor]
) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        row = row_of_experts(module)
        for expert in sorted({expert for _, expert in parts}):
            x = _read_by(path, expert, module, args, routes)
            up_name = parts.get((row.up, expert))
            down_name = parts.get((row.down, expert))
            inner = None
            if down_name is not None:
                inner = inner_of(module, expert, x)
            # Both are reported last, since seeing the last name that is waited for ends the pass.
            if up_name is not None:
                see(up_name, x)
            if down_name is not None and inner is not None:
                see(down_name, inner)

    return torch.no_grad()(hook)


def _read_by(path: str, expert: int, module: Any, args: tuple[Tensor, ...], routes: dict[str, Tensor]) -> Tensor:
    """The tokens that an expert reads, (tokens, in)."""
    row = row_of_experts(module)
    if not row.routed:  # every expert gets all tokens, those that aren't its own as zeros (Llama 4)
        own = args[0].view(count_of(module), -1, args[0].shape[-1])[expert]
        return own[own.any(dim=-1)]
    hidden, chosen = args[0], routes.setdefault(path, args[1])
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat[(chosen.reshape(len(flat), -1) == expert).any(dim=-1).nonzero().flatten()]
