"""FLOPs of a token, by shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import nn

from secateur.model.architectures import Family
from secateur.model.checkpoint import Checkpoint
from secateur.model.expert_forms import experts_of
from secateur.model.linears import linears_of, submodule


class Shaped(Protocol):
    """A checkpoint, or something that has the shapes of one."""

    @property
    def config(self) -> Any: ...

    @property
    def family(self) -> Family: ...

    @property
    def template(self) -> Any: ...


def flops_per_token(checkpoint: Shaped, layers: list[nn.Module]) -> int:
    """2 x the matrix entries that a token passes: layers (only the chosen experts), what surrounds them, the head."""
    family, total = checkpoint.family, 0
    chosen: Any = getattr(checkpoint.config, "num_experts_per_tok", None)
    chosen = chosen[0] if isinstance(chosen, list) and chosen else chosen  # of each layer (HunYuan)
    e = family.experts
    for layer in layers:
        routed = e is not None and submodule(layer, e.path) is not None
        for linear in linears_of(layer, family):
            size = linear.shape[0] * linear.shape[1]
            if e is not None and routed and chosen is not None and linear.name.startswith(e.path):
                size = size * chosen // experts_of(layer.get_submodule(e.path), e)
            total += size
        if routed:
            beside = e.path.rpartition(".")[0] if family.anatomies and e is not None else family.ffn.path
            routers = layer.get_submodule(beside).named_parameters()
            total += sum(p.numel() for name, p in routers if p.dim() == 2 and "experts" not in name)
    inside = {id(module) for layer in layers for module in layer.modules()}
    around = (m for m in checkpoint.template.modules() if isinstance(m, nn.Linear) and id(m) not in inside)
    return 2 * (total + sum(linear.weight.numel() for linear in around))


def flops_of(path: str | Path) -> int:
    """`flops_per_token` of a checkpoint folder."""
    checkpoint = Checkpoint.open(Path(path))
    return flops_per_token(checkpoint, list(checkpoint.template.get_submodule(checkpoint.family.layers).children()))
