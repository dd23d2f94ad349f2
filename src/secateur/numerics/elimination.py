"""Greedy elimination of units from a least-squares problem, always the cheapest of those that are left, in O(d³).

With A the inverse of the (damped) second moments of the inputs that are left and V the consumer solved anew on them,
removing a unit with inputs S changes them to V - V_S A_SS⁻¹ A_S: and A - A_:S A_SS⁻¹ A_S:. What a removal costs
depends on V only through M = VᵀV, which is downdated like A, so the work doesn't depend on the number of outputs. It
is done in blocks of delayed matmuls. All in fp64.

The rule by which a unit is the cheapest is the caller's: `methods/obs.py` and `methods/mi.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from secateur.numerics.linalg import not_positive_definite, wide_dtype

DELAY = 64  # inputs whose downdates wait before one matmul applies them; sets speed only

# (A_SS, M_SS), each (units, width, width) -> cost (units,) of removing each unit.
Costs = Callable[[Tensor, Tensor], Tensor]


def least_error(A: Tensor, M: Tensor) -> Tensor:
    """tr(A_SS⁻¹ M_SS) of each unit: by how much E‖W x - V x‖² grows when it goes."""
    if A.shape[-1] == 1:
        return (M / A).flatten()
    whitened = torch.cholesky_solve(M, torch.linalg.cholesky_ex(A).L)
    return whitened.diagonal(dim1=1, dim2=2).sum(1)


def eliminate(W: Tensor, A: Tensor, width: int, costs: Costs = least_error) -> tuple[list[int], list[float]]:
    """(order of removal, summed costs after each removal), as long as there are units.

    The choices stay where the matrices are until all are made: a device is waited for once.

    Args:
        W: consumer (out, units * width).
        A: inverse of the damped second moments of its inputs, (units * width, units * width), fp64.
        costs: of each unit, at each step; the least goes.

    Raises SecateurError where A is not positive definite.
    """
    state = _Elimination(W, A, width, costs)
    count = W.shape[1] // width
    order = torch.empty(count, dtype=torch.int64, device=W.device)
    least = torch.empty(count, dtype=state.A.dtype, device=W.device)
    for step in range(count):
        unit, cost = state.cheapest()
        order[step : step + 1], least[step : step + 1] = unit, cost
        state.remove(unit)
    if bool(state.failed):
        raise not_positive_definite(W.shape[1])
    objective: list[float] = []
    total = 0.0
    for cost in least.tolist():
        total += max(cost, 0.0)
        objective.append(total)
    return order.tolist(), objective


def strictly_increasing(values: list[float]) -> list[float]:
    """Nondecreasing values, each raised by the least bit where it equals the one before it."""
    out: list[float] = []
    for value in values:
        out.append(value if not out or value > out[-1] else math.nextafter(out[-1], math.inf))
    return out


class _Elimination:
    """A = A0 - F Fᵀ and M = M0 - P Fᵀ - F Pᵀ, with the factors F, P (d, pending) still to be applied."""

    def __init__(self, W: Tensor, A: Tensor, width: int, costs: Costs) -> None:
        V = W.to(wide_dtype(W.device))
        self.costs = costs
        self.A, self.M, self.width = A.clone(), V.T @ V, width
        self.delay = max(DELAY // width, 1) * width
        self.F = torch.empty(self.A.shape[0], self.delay, dtype=A.dtype, device=A.device)
        self.P = torch.empty_like(self.F)
        self.pending = 0
        self.A_units, self.M_units = self._diagonal(self.A), self._diagonal(self.M)
        self.gone = torch.zeros(len(self.A_units), dtype=torch.bool, device=A.device)
        self.inputs = torch.arange(width, device=A.device)
        self.removed = torch.eye(width, dtype=A.dtype, device=A.device)[None]
        self.failed = torch.zeros(1, dtype=torch.bool, device=A.device)

    def _diagonal(self, X: Tensor) -> Tensor:
        """The (units, width, width) blocks on the diagonal."""
        units = X.shape[0] // self.width
        return X.view(units, self.width, units, self.width).diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()

    def cheapest(self) -> tuple[Tensor, Tensor]:
        """(number, cost), (1,) each, of the remaining unit with the least cost; of equal ones the first."""
        costs = self.costs(self.A_units, self.M_units).masked_fill(self.gone, torch.inf)
        unit = costs.argmin().view(1)
        return unit, costs[unit]

    def remove(self, unit: Tensor) -> None:
        """Downdate by one unit: with A_SS = L Lᵀ, F = A_:S L⁻ᵀ, P = M_:S L⁻ᵀ - F (L⁻¹ M_SS L⁻ᵀ) / 2."""
        S = unit * self.width + self.inputs
        F0, P0 = self.F[:, : self.pending], self.P[:, : self.pending]
        a = self.A[:, S] - F0 @ F0[S].T
        m = self.M[:, S] - P0 @ F0[S].T - F0 @ P0[S].T
        L, wrong = torch.linalg.cholesky_ex(a[S])
        self.failed |= wrong > 0
        f = torch.linalg.solve_triangular(L, a.T, upper=False).T
        p = torch.linalg.solve_triangular(L, m.T, upper=False).T
        p = p - 0.5 * f @ torch.linalg.solve_triangular(L, p[S], upper=False)
        self._downdate_units(f, p)
        self.gone.index_fill_(0, unit, True)
        self.A_units[unit] = self.removed
        end = self.pending + self.width
        self.F[:, self.pending : end], self.P[:, self.pending : end] = f, p
        self.pending = end
        if end == self.delay:
            self._flush()

    def _downdate_units(self, f: Tensor, p: Tensor) -> None:
        fu, pu = f.reshape(-1, self.width, self.width), p.reshape(-1, self.width, self.width)
        cross = pu @ fu.mT
        self.A_units -= fu @ fu.mT
        self.M_units -= cross + cross.mT

    def _flush(self) -> None:
        self.A.addmm_(self.F, self.F.T, alpha=-1)
        self.M.addmm_(self.P, self.F.T, alpha=-1).addmm_(self.F, self.P.T, alpha=-1)
        self.pending = 0
