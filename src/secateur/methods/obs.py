"""Greedy structured Optimal Brain Surgeon (Hassibi & Stork 1993; for units ZipLM, Kurtić et al. 2023,
https://arxiv.org/abs/2302.04089): remove one unit after the other, always the one whose removal, with all
remaining weights of the reader moved to their best values, adds least to E‖W x - W' x‖².

With A = (E[x xᵀ] + damping)⁻¹ and V the reader so far, a unit with inputs S costs tr(V_S A_SS⁻¹ V_Sᵀ); then
V -= V_S A_SS⁻¹ A_S: and A -= A_:S A_SS⁻¹ A_S:. Costs only need M = VᵀV, which is downdated like A, so the
work is O(d³) whatever the number of outputs, done in blocks of delayed matmuls. All in fp64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units
from secateur.numerics.linalg import DAMPING, inverse, wide_dtype

DELAY = 64  # inputs whose downdates wait before one matmul applies them; sets speed only


@torch.no_grad()
def score_units(units: Units, *, damping: float = DAMPING) -> Tensor:
    """(units,) fp64: the objective at the moment when each unit went.

    Strictly increasing in the order of removal, so keeping the best k is keeping the last k.
    """
    gram = units.moments.gram.to(units.reader.device)
    A, _ = units.moments.once(f"obs {damping} {gram.device}", lambda: inverse(gram, damping))
    order, objective = eliminate(units.reader, A, units.width)
    scores = torch.empty(units.count, dtype=torch.float64)
    scores[order] = torch.tensor(strictly_increasing(objective), dtype=torch.float64)
    return scores


def eliminate(W: Tensor, A: Tensor, width: int) -> tuple[list[int], list[float]]:
    """(order of removal, objective after each removal), as long as there are units.

    Args:
        W: reader (out, units * width).
        A: inverse of the damped second moments of its inputs, (units * width, units * width), fp64.
    """
    state = _Elimination(W, A, width)
    count = W.shape[1] // width
    order: list[int] = []
    objective: list[float] = []
    total = 0.0
    for _ in range(count):
        unit, cost = state.cheapest()
        total += max(cost, 0.0)
        order.append(unit)
        objective.append(total)
        state.remove(unit)
    return order, objective


def strictly_increasing(values: list[float]) -> list[float]:
    """Nondecreasing values, each raised by the least bit where it equals the one before it."""
    out: list[float] = []
    for value in values:
        out.append(value if not out or value > out[-1] else math.nextafter(out[-1], math.inf))
    return out


class _Elimination:
    """A = A0 - F Fᵀ and M = M0 - P Fᵀ - F Pᵀ, with the factors F, P (d, pending) still to be applied."""

    def __init__(self, W: Tensor, A: Tensor, width: int) -> None:
        V = W.to(wide_dtype(W.device))
        self.A, self.M, self.width = A.clone(), V.T @ V, width
        self.delay = max(DELAY // width, 1) * width
        self.F = torch.empty(self.A.shape[0], self.delay, dtype=A.dtype, device=A.device)
        self.P = torch.empty_like(self.F)
        self.pending = 0
        self.A_units, self.M_units = self._diagonal(self.A), self._diagonal(self.M)
        self.gone = torch.zeros(len(self.A_units), dtype=torch.bool, device=A.device)

    def _diagonal(self, X: Tensor) -> Tensor:
        """The (units, width, width) blocks on the diagonal."""
        units = X.shape[0] // self.width
        return X.view(units, self.width, units, self.width).diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()

    def cheapest(self) -> tuple[int, float]:
        """The remaining unit with the least cost tr(A_SS⁻¹ M_SS); of equal ones the first."""
        if self.width == 1:
            costs = (self.M_units / self.A_units).flatten()
        else:
            whitened = torch.cholesky_solve(self.M_units, torch.linalg.cholesky(self.A_units))
            costs = whitened.diagonal(dim1=1, dim2=2).sum(1)
        costs = costs.masked_fill(self.gone, torch.inf)
        unit = int(costs.argmin())
        return unit, float(costs[unit])

    def remove(self, unit: int) -> None:
        """Downdate by one unit: with A_SS = L Lᵀ, F = A_:S L⁻ᵀ, P = M_:S L⁻ᵀ - F (L⁻¹ M_SS L⁻ᵀ) / 2."""
        S = slice(unit * self.width, (unit + 1) * self.width)
        F0, P0 = self.F[:, : self.pending], self.P[:, : self.pending]
        a = self.A[:, S] - F0 @ F0[S].T
        m = self.M[:, S] - P0 @ F0[S].T - F0 @ P0[S].T
        L = torch.linalg.cholesky(a[S])
        f = torch.linalg.solve_triangular(L, a.T, upper=False).T
        p = torch.linalg.solve_triangular(L, m.T, upper=False).T
        p = p - 0.5 * f @ torch.linalg.solve_triangular(L, p[S], upper=False)
        self._downdate_units(f, p)
        self.gone[unit] = True
        self.A_units[unit] = torch.eye(self.width, dtype=a.dtype, device=a.device)
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


METHOD = Method(
    name="obs",
    title="Greedy structured OBS",
    paper="https://arxiv.org/abs/2302.04089",
    needs=frozenset({"gram"}),
    score_units=score_units,
)
