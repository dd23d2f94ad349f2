"""A Linear with all its weights, computed by our own kernel where x has few rows: the head of a model, mostly.

It stays an `nn.Linear` with its parameter, tied or not. What differs is how the product of a token is computed on a
CPU in bf16, where torch's own reads the weights more slowly than memory delivers them.
"""

from __future__ import annotations

from collections import Counter
from ctypes import addressof, c_float, c_int64
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.runtime.kernels.ir import MAX_BATCH, WORD
from secateur.runtime.kernels.jit import shares_threads, variants
from secateur.runtime.kernels.plain import KIND, LAYER, NAME
from secateur.runtime.measured_before import measured_before
from secateur.runtime.operand import Operand
from secateur.runtime.race import race

SMALLEST = 1 << 20  # entries: a smaller one takes microseconds either way
TRIED = (1, 4, 8, 16)  # rows of x
RUNS = 5
WORTH = 1.1  # times as fast, or torch does it
_ZERO = c_float(0.0)


@dataclass(frozen=True)
class Limit:
    """Up to how many rows of x our kernel is faster; 0: never.

    Args:
        seconds_kernel, seconds_torch: of one row; None where nothing was measured.
    """

    rows: int
    seconds_kernel: float | None = None
    seconds_torch: float | None = None


@torch.library.custom_op("secateur::few_rows", mutates_args=())
def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., columns) times weight (rows, columns), plus bias (rows,), by the kernel: (..., rows)."""
    return _product(x, weight, bias)


@few_rows.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class FewRows(nn.Linear):
    """y = x W' + b, by the kernel where x lies on a CPU, has up to `limit` rows, and nothing asks for gradients."""

    def __init__(self, linear: nn.Linear, limit: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        """x (..., columns) to (..., rows)."""
        few = x.numel() <= self.limit * self.in_features and x.numel() > 0
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        plain = x.dtype == self.weight.dtype == torch.bfloat16 and x.is_cpu and self.weight.is_contiguous()
        if not few or learns or not plain:
            return F.linear(x, self.weight, self.bias)
        if torch.compiler.is_compiling():
            return torch.ops.secateur.few_rows(x, self.weight, self.bias)
        return _product(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {NAME} kernel up to {self.limit} rows"


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + bias by the kernel, of a contiguous W in bf16, wherever it lies by now."""
    rows, columns = weight.shape
    if bias is None:
        return _without_bias(weight.data_ptr(), rows, columns).times(x)
    wide = bias.detach().to(torch.float32, copy=True)  # lives as long as the product takes
    return _operand(weight.data_ptr(), rows, columns, wide.data_ptr(), wide.itemsize).times(x)


@lru_cache(maxsize=4096)
def _without_bias(at: int, rows: int, columns: int) -> Operand:
    """Says nothing but where a matrix would lie, so it can be kept when another one lies there."""
    return _operand(at, rows, columns, addressof(_ZERO), 0)


def _operand(at: int, rows: int, columns: int, bias: int, bias_step: int) -> Operand:
    """A matrix and its float32 bias at addresses, as the kernel wants them."""
    fields = {"values": at, "bias": bias, "bias_step": bias_step, "rows": rows, "columns": columns}
    layer = (c_int64 * len(LAYER))(*(fields[name] for name in LAYER))
    return Operand(layer, rows, columns, NAME, KIND, MAX_BATCH, 1)


def fits(linear: nn.Module) -> bool:
    """Whether there's a kernel for a Linear, and reason to try it."""
    if type(linear) is not nn.Linear or not variants() or not shares_threads():
        return False
    W = linear.weight
    return (
        W.is_cpu
        and W.dtype == torch.bfloat16
        and not W.shape[1] % WORD
        and W.numel() >= SMALLEST
        and W.is_contiguous()
    )


def speed_up(model: nn.Module) -> Counter[tuple[int, int, Limit]]:
    """Lets Linears of a model that are faster so take our kernel for few rows.

    Returns:
        (rows, columns, up to how many rows of x) -> how many Linears.
    """
    changed: Counter[tuple[int, int, Limit]] = Counter()
    for path, module in list(model.named_modules()):
        if not fits(module):
            continue
        limit = _limit(module.weight)
        if limit.rows:
            model.set_submodule(path, FewRows(module, limit.rows))
        changed[module.out_features, module.in_features, limit] += 1
    return changed


def _limit(W: Tensor) -> Limit:
    """Measured once for a shape and number of threads."""
    key = (*W.shape, torch.get_num_threads())
    if key not in _known:
        _known[key] = measured_before(Limit, key, lambda: _measure(W), lambda kept: 0 <= kept.rows <= TRIED[-1])
    return _known[key]


_known: dict[tuple[object, ...], Limit] = {}


def forget() -> None:
    """Forgets what this process knows; what the user's cache has stays there."""
    _known.clear()


def _measure(W: Tensor) -> Limit:
    best, first = 0, (0.0, 0.0)
    for rows in TRIED:
        x = torch.randn(rows, W.shape[1]).to(W.dtype)
        own, other = race(RUNS, partial(_product, x, W, None), partial(F.linear, x, W))
        first = first if best else (own, other)
        if WORTH * own > other:
            break
        best = rows
    return Limit(best, *first)
