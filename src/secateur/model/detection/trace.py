"""Where a model keeps its layers, what it hands to them, and in which order data reaches their matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from secateur.model.detection.copies import language_modules, run, token_ids


@dataclass
class Visit:
    """One call of a layer.

    Args:
        args, kwargs: what it was called with, hidden states included.
        linears: its matrices in the order in which data reached them, each with the number of the tensor it read.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    linears: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Trace:
    """What a forward pass of a small copy has shown.

    Args:
        layers: path of the list of decoder layers.
        visits: of each layer; None where it wasn't called (layers that only look at images).
    """

    layers: str
    visits: tuple[Visit | None, ...]

    @property
    def returns(self) -> int:
        """0 if layers return a tensor, else the length of the tuple; -1 if they don't agree."""
        found = {len(v.output) if isinstance(v.output, tuple | list) else 0 for v in self.visits if v is not None}
        return found.pop() if len(found) == 1 else -1


def is_matrix(module: nn.Module) -> bool:
    """Whether a module multiplies what it reads by a matrix, as Linears do."""
    weight = getattr(module, "weight", None)
    named = isinstance(module, nn.Linear | Conv1D) or "Linear" in type(module).__name__
    return named and isinstance(weight, Tensor) and weight.dim() == 2


def layer_lists(model: Any) -> list[str]:
    """Paths of the lists of modules in the language model that are in no other list."""
    wanted = {id(module) for module in language_modules(model)}
    found = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and id(m) in wanted and len(m)]
    return [n for n in found if not any(n.startswith(f"{other}.") for other in found)]


def trace(model: Any) -> Trace:
    """Watches one forward pass.

    Raises:
        ValueError: no list of modules is run through in order.
    """
    called: dict[str, list[int]] = {}
    handles = []
    for path in layer_lists(model):
        for number, layer in enumerate(model.get_submodule(path)):
            handles.append(
                layer.register_forward_pre_hook(lambda _m, _a, p=path, n=number: called.setdefault(p, []).append(n))
            )
    ids = token_ids(model)
    try:
        run(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    able = {path: order for path, order in called.items() if order == sorted(set(order))}
    if not able:
        raise ValueError("no list of modules that a forward pass goes through in order")
    path = max(able, key=lambda p: (len(able[p]), sum(x.numel() for x in model.get_submodule(p).parameters())))
    return Trace(path, watch_layers(model, path, ids))


def watch_layers(model: Any, path: str, ids: Tensor) -> tuple[Visit | None, ...]:
    """What each layer is called with, and what happens in it."""
    layers = list(model.get_submodule(path))
    visits = [Visit() for _ in layers]
    called: set[int] = set()
    handles: list[Any] = []
    for number, layer in enumerate(layers):
        handles += _hooks(layer, visits[number], lambda n=number: called.add(n))
    try:
        with torch.no_grad():
            run(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(visit if number in called else None for number, visit in enumerate(visits))


def _hooks(layer: nn.Module, visit: Visit, note: Any) -> list[Any]:
    read: list[Tensor] = []

    def enters(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note()
        visit.args, visit.kwargs = args, kwargs

    def leaves(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        visit.output = output

    def multiplies(name: str, args: tuple[Any, ...]) -> None:
        if not args or not isinstance(args[0], Tensor):
            return
        number = next((i for i, tensor in enumerate(read) if tensor is args[0]), len(read))
        read.extend([args[0]] * (number == len(read)))
        if name not in {known for known, _ in visit.linears}:
            visit.linears.append((name, number))

    handles = [
        layer.register_forward_pre_hook(enters, with_kwargs=True),
        layer.register_forward_hook(leaves),
    ]
    for name, module in layer.named_modules():
        if is_matrix(module):
            handles.append(module.register_forward_pre_hook(lambda _m, args, n=name: multiplies(n, args)))
    return handles


def shared_parameters(layers: Sequence[nn.Module]) -> set[int]:
    """Parameters (by identity) that are in more than one layer."""
    seen: dict[int, int] = {}
    for number, layer in enumerate(layers):
        for parameter in layer.parameters():
            seen.setdefault(id(parameter), number)
            if seen[id(parameter)] != number:
                seen[id(parameter)] = -1
    return {key for key, number in seen.items() if number == -1}


def kind_of(layer: nn.Module) -> tuple[tuple[str, str], ...]:
    """What tells one kind of layer from another: its modules, and their classes."""
    return tuple((name, type(module).__name__) for name, module in layer.named_modules())
