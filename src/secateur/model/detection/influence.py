"""Which entries of which parameters reach which inputs of a Linear: found by gradients, not by names.

A unit of a Linear's input is what writes it and what reads it. For every column of the input of a Linear, the
gradient of that column says which rows, biases, gains and convolutions it depends on, exactly: where there's no way,
the gradient is zero. Entries that reach the same columns belong together, whatever the layout of a fused matrix is.
Norms over several units would tie them all together; they're replaced by their gains meanwhile, which is what their
removal needs (see `sites.Cut.rescale`).
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.detection.trace import is_matrix

MOST_COLUMNS = 512
MOST_ENTRIES = 4_000_000  # of a parameter that is looked at
BATCH_ENTRIES = 8_000_000  # of the gradients of some columns together


Caller = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Influence:
    """(parameter, axis) -> bool (size of the axis, columns): whether an entry reaches a column."""

    reach: dict[tuple[str, int], Tensor]
    columns: int


def influence(layer: nn.Module, call: Caller, consumer: str, readers: tuple[str, ...]) -> Influence:
    """What reaches the inputs of the Linear `consumer`.

    Args:
        call: runs a layer.
        readers: other matrices that read the same units; nothing is followed through them.

    Raises:
        ValueError: too many columns, or the layer has no gradients.
    """
    seen: list[Tensor] = []
    module = layer.get_submodule(consumer)
    tensors = {
        name: tensor
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]
        if tensor.is_floating_point()
        and not tensor.is_meta
        and tensor.numel() <= MOST_ENTRIES
        and not _is_mask(tensor)
    }
    before = {name: tensor.requires_grad for name, tensor in tensors.items()}
    handles = [module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))]
    for name in readers:
        handles.append(layer.get_submodule(name).register_forward_hook(lambda _m, _a, out: out.detach()))
    try:
        for tensor in tensors.values():
            tensor.requires_grad_(True)
        with torch.enable_grad(), _plain_norms(layer):
            call(layer)
        return _reached(seen[0], tensors)
    finally:
        for handle in handles:
            handle.remove()
        for name, tensor in tensors.items():
            tensor.requires_grad_(before[name])


def _is_mask(tensor: Tensor) -> bool:
    """A triangle of ones that a layer keeps (the first GPTs): it says which tokens see which, and is of no unit."""
    return tensor.dim() > 1 and bool((tensor == tensor.tril()).all()) and bool(((tensor == 0) | (tensor == 1)).all())


def _reached(x: Tensor, tensors: dict[str, Tensor]) -> Influence:
    columns = x.shape[-1]
    if columns > MOST_COLUMNS or not x.requires_grad:
        raise ValueError(f"{columns} columns" if x.requires_grad else "its input has no gradient")
    reach = {
        (name, axis): torch.zeros(size, columns, dtype=torch.bool)
        for name, tensor in tensors.items()
        for axis, size in enumerate(tensor.shape)
        if size > 1
    }
    # A key's bias shifts all logits alike, so it has no gradient but noise: biases belong to their matrix's rows.
    biases = {name: f"{name[:-5]}.weight" for name in tensors if name.endswith(".bias")}
    tensors = {name: t for name, t in tensors.items() if biases.get(name) not in tensors or name not in biases}
    flat = x.reshape(-1, columns)
    weights = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1))
    for some in torch.arange(columns).split(max(1, BATCH_ENTRIES // sum(t.numel() for t in tensors.values()))):
        for name, gradient in _gradients(flat, weights, some, tensors).items():
            there = gradient != 0
            for axis in range(there.dim() - 1):
                if (name, axis) in reach:
                    others = [a + 1 for a in range(there.dim() - 1) if a != axis]
                    reach[name, axis][:, some] = (there.any(dim=others) if others else there).T
    for bias, weight in biases.items():
        for axis in (0, 1):
            other = reach.get((weight, axis))
            if (bias, 0) in reach and other is not None and len(other) == len(reach[bias, 0]):
                reach[bias, 0] = other
                break
    return Influence({key: m for key, m in reach.items() if bool(m.any())}, columns)


def _gradients(flat: Tensor, weights: Tensor, columns: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of some columns: parameter -> gradients (columns, *its shape); those that no column depends on are left out.

    All in one backward pass, which a loop over tokens makes much faster; one by one where a class can't do that.
    """
    grads = torch.zeros(len(columns), *flat.shape)
    grads[torch.arange(len(columns)), :, columns] = weights[:, columns].T
    own = list(tensors.values())

    def backward(grad: Tensor, batched: bool) -> Sequence[Tensor | None]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that are no faster together
            return torch.autograd.grad(
                flat, own, grad, retain_graph=True, allow_unused=True, is_grads_batched=batched
            )

    try:
        found = backward(grads, True)
    except RuntimeError:
        each = zip(*(backward(grad, False) for grad in grads), strict=True)
        found = [None if same[0] is None else torch.stack(same) for same in each]
    return {name: g for name, g in zip(tensors, found, strict=True) if g is not None}


def inner_readers(layer: nn.Module, call: Caller, consumer: str) -> tuple[str, ...]:
    """Matrices that may read the units of `consumer` before it does: as wide, and behind another of their module."""
    module = layer.get_submodule(consumer)
    parent = consumer.rpartition(".")[0]
    width = _inputs(module)
    beside = {
        name: m
        for name, m in layer.named_modules()
        if is_matrix(m) and name != consumer and name.rpartition(".")[0] == parent
    }
    able = [name for name, m in beside.items() if _inputs(m) == width]
    found = []
    for name in able:
        others = [m.weight for other, m in beside.items() if other != name]
        if others and _depends(layer, call, name, others):
            found.append(name)
    return tuple(found)


def followed(layer: nn.Module, call: Caller, name: str) -> bool:
    """Whether another matrix of its module, or below it, reads what this one has written."""
    parent = name.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    own = [layer.get_submodule(name).weight]
    others = [n for n, m in layer.named_modules() if is_matrix(m) and n != name and n.startswith(prefix)]
    try:
        return any(_depends(layer, call, other, own) for other in others)
    except RuntimeError:  # no gradients: whoever asks further finds out
        return False


def _depends(layer: nn.Module, call: Caller, name: str, weights: list[Any]) -> bool:
    seen: list[Tensor] = []
    handle = layer.get_submodule(name).register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            call(layer)
        if not seen or not seen[0].requires_grad:
            return False
        found = torch.autograd.grad(seen[0].square().sum(), weights, allow_unused=True)
        return any(g is not None and bool((g != 0).any()) for g in found)
    finally:
        handle.remove()
        for weight in weights:
            weight.requires_grad_(False)


def _inputs(module: Any) -> int:
    rows, columns = module.weight.shape
    return int(rows if type(module).__name__ == "Conv1D" else columns)


@contextmanager
def _plain_norms(layer: nn.Module) -> Iterator[None]:
    """Norms multiply by their gains only."""
    changed = []
    for module in layer.modules():
        if "Norm" in type(module).__name__ and not list(module.children()):
            module.forward = types.MethodType(_gain, module)
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _gain(self: Any, x: Tensor, gate: Any = None, *_args: Any, **_kwargs: Any) -> Tensor:
    weight, bias = getattr(self, "weight", None), getattr(self, "bias", None)
    fits = weight is not None and weight.shape[-1] == x.shape[-1]
    # All alike by a number: what is too large lets a softmax behind it choose without a gradient.
    x = x / x.detach().float().square().mean().sqrt().clamp_min(1e-6).to(x.dtype)
    out = x * weight if weight is not None and fits else x
    out = out if bias is None or not fits else out + bias
    return out * nn.functional.silu(gate) if isinstance(gate, Tensor) else out
