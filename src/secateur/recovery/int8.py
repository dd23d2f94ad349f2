"""A model that is only asked, with its matrices as int8: a quarter of the memory of fp32, half of bf16's.

Every row of a matrix has one fp32 scale (weights only, symmetric, round to nearest: the scheme of
`secateur compress --values int8`). torch's own parametrisation puts a matrix together whenever its module asks for
it, so what is in memory at full width is one matrix at a time. The model is read layer by layer, and each layer is
rounded before the next is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from secateur.model.checkpoint import Checkpoint
from secateur.runtime.format import round_to_int8, scales_of
from secateur.system.malloc import give_back


class Rows(nn.Module):
    """Stands for a matrix: values (..., rows, columns) in int8 and scales that broadcast over them, in fp32.

    Args:
        axis: along which entries share a scale.
        dtype: of the matrix as its module sees it.
    """

    def __init__(self, axis: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.axis, self.dtype = axis, dtype

    def forward(self, values: Tensor, scales: Tensor) -> Tensor:
        return (values * scales).to(self.dtype)

    def right_inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        scales = scales_of(W.float().abs().amax(self.axis, keepdim=True))
        return round_to_int8(W.float(), scales), scales


def load_int8(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """The model of a checkpoint with int8 matrices, embeddings and head included, in eval mode.

    Norms, biases and routers are as they were: they are small, and a router decides everything.

    Args:
        dtype: of the computation.
    """
    model: Any = checkpoint.skeleton(dtype)
    checkpoint.load_into(model, checkpoint.by_layer[None])
    model.tie_weights()
    shrink(model)
    for index, layer in enumerate(model.get_submodule(checkpoint.family.layers).children()):
        checkpoint.load_into(model, checkpoint.by_layer.get(index, []))
        shrink(layer)
        layer.to(device)
        give_back()
    return model.to(device)


@torch.no_grad()
def shrink(model: nn.Module) -> None:
    """Rounds every matrix that is in memory: of Linears and embeddings, and those of experts. Tied ones stay tied.

    Nothing of the model learns from then on.
    """
    done: dict[nn.Parameter, Any] = {}
    for module in list(model.requires_grad_(False).modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta or not _is_matrix(module, name, parameter):
                continue
            axis = 0 if isinstance(module, Conv1D) else -1  # Conv1D stores the transpose
            parametrize.register_parametrization(module, name, Rows(axis, parameter.dtype))
            held: Any = module.parametrizations
            held = held[name]
            first = done.setdefault(parameter, held)
            held.original0, held.original1 = first.original0, first.original1


def _is_matrix(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    plain = isinstance(module, (nn.Linear, Conv1D, nn.Embedding)) and name == "weight"
    return parameter.is_floating_point() and (plain or parameter.dim() == 3)
