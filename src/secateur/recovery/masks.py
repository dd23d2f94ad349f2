"""Zeros that stay zeros while a model is trained.

A matrix that was pruned computes with W * mask, so the gradient of a zero is zero, and so is AdamW's step from it;
`muon` cuts each of its steps to the mask. Nothing is cut afterwards. Each such module keeps its class's name for its
weights, so checkpoints look as before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from secateur.errors import SecateurError
from secateur.model.architectures import Family
from secateur.model.linears import linears_of

BUFFER = "secateur_mask"
# Fewer zeros than one in a thousand weren't pruned: they are what half precision rounds to nothing.
LEAST = 1e-3


class HeldLinear(nn.Linear):
    """A Linear that computes with W * mask."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.get_buffer(BUFFER), self.bias)


class HeldConv1D(Conv1D):
    """GPT-2's Linear, which stores the transpose, with W * mask."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.weight * self.get_buffer(BUFFER)).T, self.bias)


_HELD: dict[type, type] = {nn.Linear: HeldLinear, Conv1D: HeldConv1D}


def find_masks(model: Any, family: Family) -> dict[str, Tensor]:
    """Parameter -> bool mask in the parameter's own shape (True = keep), for every pruned matrix of the layers."""
    found: dict[str, Tensor] = {}
    for index, layer in enumerate(model.get_submodule(family.layers).children()):
        for name in dict.fromkeys(linear.parameter_name for linear in linears_of(layer, family)):
            kept = layer.get_parameter(name).data != 0
            if int((~kept).sum()) >= LEAST * kept.numel():
                found[f"{family.layers}.{index}.{name}"] = kept
    return found


def attach(model: Any, masks: dict[str, Tensor]) -> None:
    """Puts each mask beside its weight, as a buffer that isn't saved; those of 3-D parameters have no module."""
    for name, mask in masks.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "weight":
            module = model.get_submodule(path)
            module.weight.data.masked_fill_(~mask.to(module.weight.device), 0)  # a -0.0 becomes 0.0
            module.register_buffer(BUFFER, mask.to(module.weight.device), persistent=False)


def hold(model: Any, masks: dict[str, Tensor]) -> None:
    """From now on the masked weights are trained with their zeros."""
    attach(model, masks)
    for name, mask in masks.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "weight":
            module = model.get_submodule(path)
            module.__class__ = _HELD[type(module)]
        else:  # experts: one parameter for all, which its module multiplies in kernels of its own
            parameter = model.get_parameter(name)
            parameter.data.masked_fill_(~mask.to(parameter.device), 0)
            parameter.register_hook(_masked(mask))


def release(model: Any, masks: dict[str, Tensor]) -> None:
    """Makes plain modules of those that were held."""
    back = {held: plain for plain, held in _HELD.items()}
    for name in masks:
        path, _, leaf = name.rpartition(".")
        if leaf == "weight":
            module = model.get_submodule(path)
            module.__class__ = back.get(type(module), type(module))
            module._buffers.pop(BUFFER, None)
            module._non_persistent_buffers_set.discard(BUFFER)


def _masked(mask: Tensor) -> Any:
    return lambda gradient: gradient * mask.to(gradient.device)


@torch.no_grad()
def check(model: Any, masks: dict[str, Tensor]) -> int:
    """Counts the zeros that stayed.

    Raises:
        SecateurError: one didn't.
    """
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        lost = int(torch.count_nonzero(weight[~mask.to(weight.device)]))
        if lost:
            raise SecateurError(f"{lost} zeros of {name} were filled by the training; nothing was written")
    return sum(int((~mask).sum()) for mask in masks.values())
