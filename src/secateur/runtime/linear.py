"""A Linear that computes from the packed form: takes the place of `nn.Linear` (or GPT-2's Conv1D) in a model."""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from secateur.runtime.gpu.matrix import DeviceMatrix
from secateur.runtime.gpu.semi_structured import SemiStructuredMatrix
from secateur.runtime.matrix import Matrix

AnyMatrix = Matrix | DeviceMatrix | SemiStructuredMatrix

# A compiled graph knows a matrix by its number: handing its tensors over would add five inputs, each guarded at
# every call, for every Linear of the model.
_MATRICES: WeakValueDictionary[int, AnyMatrix] = WeakValueDictionary()
_numbers = itertools.count()


@torch.library.custom_op("secateur::packed_linear", mutates_args=())
def packed_linear(x: Tensor, number: int, rows: int) -> Tensor:
    """x (..., columns) times the matrix of this number, plus its bias: (..., rows)."""
    return _MATRICES[number].times(x)


@packed_linear.register_fake
def _(x: Tensor, number: int, rows: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


def _remember(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    ctx.number = inputs[1]


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return gradient @ _MATRICES[ctx.number].dense(dtype=gradient.dtype), None, None


packed_linear.register_autograd(_gradient, setup_context=_remember)


class PackedLinear(nn.Module):
    """y = x W' + b with W in packed form; W itself doesn't learn.

    The matrix is no parameter and no buffer: `model.to(dtype)` changes activations only. In a state_dict W is
    dense, under its usual name, so `save_pretrained` writes a checkpoint that anything loads.
    """

    def __init__(self, matrix: AnyMatrix) -> None:
        super().__init__()
        self.matrix = matrix
        self.in_features, self.out_features = matrix.columns, matrix.rows
        self.number = next(_numbers)
        _MATRICES[self.number] = matrix
        self.stored_transposed = False  # as Conv1D has it

    @property
    def weight(self) -> Tensor:
        """W (rows, columns), unpacked anew at each use."""
        return self.matrix.dense()

    @property
    def bias(self) -> Tensor | None:
        return self.matrix.bias

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
            return torch.ops.secateur.packed_linear(x, self.number, self.out_features)
        return self.matrix.times(x)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        W = self.weight
        destination[prefix + "weight"] = (W.T if self.stored_transposed else W).contiguous()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias

    def extra_repr(self) -> str:
        m = self.matrix
        share = m.kept / max(1, m.rows * m.columns)
        return f"{m.columns}, {m.rows}, {m.kind}, {share:.1%} kept, {m.variant}, up to {m.limit} rows"


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Entries of all parameters, tied ones once, and how many aren't zero; packed matrices count whole."""
    packed = [module.matrix for module in model.modules() if isinstance(module, PackedLinear)]
    tensors = [*model.parameters(), *(matrix.bias for matrix in packed if matrix.bias is not None)]
    total = sum(tensor.numel() for tensor in tensors) + sum(matrix.rows * matrix.columns for matrix in packed)
    nonzero = sum(int(torch.count_nonzero(tensor)) for tensor in tensors)
    return total, nonzero + sum(int(torch.count_nonzero(matrix.values)) for matrix in packed)


def resident_weights(model: nn.Module) -> int:
    """Bytes of everything that a model computes with: parameters, buffers, packed matrices; tied ones once."""
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return sum(held.values()) + sum(m.matrix.nbytes for m in model.modules() if isinstance(m, PackedLinear))
