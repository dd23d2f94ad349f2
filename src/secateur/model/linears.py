"""One view of a weight matrix as (out_features, in_features), whatever module stores it.

`nn.Linear` stores that; GPT-2's `Conv1D` stores the transpose; a mixture-of-experts layer stores one
slice per expert of a 3-D parameter. Methods see W; only this file knows the difference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from secateur.model.architectures import Family, join

_EXPERT = re.compile(r"^(.*)\[(\d+)\]$")


def is_transposed(module: nn.Module) -> bool:
    """True for GPT-2's Conv1D, whose weight is (in, out)."""
    return isinstance(module, Conv1D)


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """Finds the module at a dotted path below `root`; None where this layer has none."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def has_weight(layer: nn.Module, linear: str) -> bool:
    """False where a sub-block was taken out: its Linears are gone, or have no weight any more."""
    return isinstance(getattr(submodule(layer, linear), "weight", None), torch.Tensor)


def parameter_shape(layer: nn.Module, linear: str) -> tuple[int, int]:
    """(out_features, in_features) of the Linear at `linear`."""
    module = layer.get_submodule(linear)
    rows, columns = layer.get_parameter(f"{linear}.weight").shape
    return (columns, rows) if is_transposed(module) else (rows, columns)


def renumbered(name: str, experts: Sequence[int]) -> str:
    """A Linear's name with `experts[k]` in place of expert k; other names stay as they are.

    >>> renumbered("mlp.experts.down_proj[1]", (0, 3))
    'mlp.experts.down_proj[3]'
    """
    match = _EXPERT.match(name)
    return f"{match[1]}[{experts[int(match[2])]}]" if match else name


@dataclass(eq=False)
class Linear:
    """A weight matrix of one layer, read and written as W (out_features, in_features), however it is stored.

    Args:
        layer: the decoder layer.
        name: path below the layer; `mlp.experts.down_proj[3]` is expert 3 of a 3-D parameter.
        source: name of the Linear whose input statistics this one shares (q, k and v read one tensor).
    """

    layer: nn.Module
    name: str
    source: str

    @property
    def _parameter(self) -> nn.Parameter:
        match = _EXPERT.match(self.name)
        return self.layer.get_parameter(match[1] if match else f"{self.name}.weight")

    @property
    def parameter_name(self) -> str:
        """The parameter that holds W (for an expert: the 3-D one that holds them all)."""
        match = _EXPERT.match(self.name)
        return match[1] if match else f"{self.name}.weight"

    @property
    def stored(self) -> torch.Tensor:
        """W as a view of the parameter itself, in its own dtype."""
        match = _EXPERT.match(self.name)
        if match:
            own = self._parameter.data[int(match[2])]
            return own.T if self._transposed_expert else own
        data = self._parameter.data
        return data.T if is_transposed(self.layer.get_submodule(self.name)) else data

    @property
    def output_axis(self) -> int:
        """The parameter's axis along which outputs lie; inputs lie along the one beside it."""
        if _EXPERT.match(self.name):
            return 2 if self._transposed_expert else 1
        return 1 if is_transposed(self.layer.get_submodule(self.name)) else 0

    @property
    def _transposed_expert(self) -> bool:
        row = getattr(self.layer.get_submodule(self.parameter_name.rpartition(".")[0]), "secateur_experts", None)
        return row is not None and row.transposed

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return tuple(self.stored.shape)  # type: ignore[return-value]

    @property
    def weight(self) -> torch.Tensor:
        """A float32 copy of W, (out_features, in_features). Assign to it to write W, in the parameter's own dtype."""
        return self.stored.to(torch.float32, copy=True)

    @weight.setter
    def weight(self, value: torch.Tensor) -> None:
        self.stored.copy_(value.to(self.stored.dtype))

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias parameter's data (out_features,), or None."""
        if _EXPERT.match(self.name):
            return None
        bias = getattr(self.layer.get_submodule(self.name), "bias", None)
        return None if bias is None else bias.data


def linears_of(layer: nn.Module, family: Family) -> list[Linear]:
    """Lists the prunable weight matrices of one decoder layer, in the order in which data reaches them.

    Embeddings, the head, norms and routers are left out: a router is tiny and decides everything.

    Args:
        layer: the module, on any device.
        family: the architecture's row of the table, see `family_of`.
    """
    if family.anatomies:
        return _detected(layer, family)
    a, f = family.attention, family.ffn
    names: list[tuple[str, str]] = []
    if has_weight(layer, join(a.path, a.o)):
        producers = [a.fused] if a.fused else [a.q, a.k, a.v]
        names += [(join(a.path, n), join(a.path, producers[0])) for n in producers]
        names.append((join(a.path, a.o), join(a.path, a.o)))
    if family.experts is not None and submodule(layer, family.experts.path) is not None:
        e = family.experts
        count = layer.get_parameter(f"{e.path}.{e.down}").shape[0]
        for part in (e.up, e.down):
            names += [(f"{e.path}.{part}[{i}]",) * 2 for i in range(count)]
    elif has_weight(layer, join(f.path, f.down)):
        names += [(join(f.path, n), join(f.path, f.up[0])) for n in f.up]
        names.append((join(f.path, f.down), join(f.path, f.down)))
    return [Linear(layer, name, source) for name, source in names]


def _detected(layer: nn.Module, family: Family) -> list[Linear]:
    """Those of a detected architecture; a name with a number in brackets, as `linears_of` gives experts."""
    e, names = family.experts, []
    for name, source in family.anatomy_of(layer).linears:
        if e is not None and name in (f"{e.path}.{e.up}", f"{e.path}.{e.down}"):
            names += [(f"{name}[{i}]",) * 2 for i in range(layer.get_parameter(f"{e.path}.{e.down}").shape[0])]
        elif has_weight(layer, name):
            names.append((name, source))
    return [Linear(layer, name, source) for name, source in names]
