"""How experts are kept in 3-D parameters, and what one of them computes.

gated         up (experts, 2 x channels, hidden): gate rows, then up rows; down (experts, hidden, channels)
transposed    the same with the last two axes changed over: (experts, hidden, 2 x channels)
plain         up (experts, channels, hidden), no gate
interleaved   as transposed, with gate and up of a channel side by side, and biases (GPT-OSS)
flat          gate, up and down (experts x channels, hidden), the rows of one expert below those of another (DBRX)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from secateur.model.architectures import ExpertModules

STANDARD = ExpertModules()


def row_of_experts(module: Any) -> ExpertModules:
    """The row that an experts module was marked with; of listed architectures the usual form."""
    found = getattr(module, "secateur_experts", STANDARD)
    assert isinstance(found, ExpertModules)
    return found


def count_of(module: Any) -> int:
    """How many experts there are."""
    return experts_of(module, row_of_experts(module))


def experts_of(module: Any, row: ExpertModules) -> int:
    """How many experts there are in a module of this row."""
    return len(module.get_parameter(row.down)) // (row.rows or 1)


def matrix(module: Any, name: str, expert: int) -> Tensor:
    """W (out, in) of an expert, a view of the parameter."""
    row, data = row_of_experts(module), module.get_parameter(name).data
    if row.form == "flat":
        own: Tensor = data.view(-1, row.rows, data.shape[-1])[expert]
        return own.T if name == row.down else own
    return data[expert].T if row.transposed else data[expert]


def inner_of(module: Any, expert: int, x: Tensor) -> Tensor:
    """What the second matrix of an expert reads, (tokens, channels), where the first reads x (tokens, in)."""
    row = row_of_experts(module)
    if row.form == "flat":
        gate, through = (nn.functional.linear(x, matrix(module, name, expert)) for name in (row.gate, row.up))
        product: Tensor = module.get_submodule(row.up.rpartition(".")[0]).activation_fn(gate) * through
        return product
    bias = getattr(module, f"{row.up}_bias", None)
    return inner_with(module, matrix(module, row.up, expert), x, None if bias is None else bias.data[expert])


def inner_with(module: Any, up: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same for a first matrix (out, in) of one's own."""
    row, read = row_of_experts(module), nn.functional.linear(x, up, bias)
    if row.form == "plain":
        plain: Tensor = module.act_fn(read)
        return plain
    if row.form == "interleaved" or "_apply_gate" in vars(type(module)):
        gated: Tensor = module._apply_gate(read)
        return gated
    gate, through = read.chunk(2, dim=-1)
    inner: Tensor = module.act_fn(gate) * through
    return inner


def written_by_expert(module: Any, expert: int, x: Tensor) -> Tensor:
    """What an expert writes, (tokens, hidden), where it reads x (tokens, hidden)."""
    row = row_of_experts(module)
    bias = getattr(module, f"{row.down}_bias", None)
    down = matrix(module, row.down, expert)
    return nn.functional.linear(inner_of(module, expert, x), down, None if bias is None else bias.data[expert])
