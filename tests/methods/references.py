"""The formulas once more, as slow as they are plain: loops over entries in fp64, no shared code."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def magnitude(W: Tensor) -> Tensor:
    return torch.tensor([[abs(float(w)) for w in row] for row in W])


def wanda(W: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros(W.shape)
    for i, j in itertools.product(range(W.shape[0]), range(W.shape[1])):
        norm = math.sqrt(sum(float(t) ** 2 for t in x[:, j]))
        out[i, j] = abs(float(W[i, j])) * norm
    return out


def wanda_units(consumer: Tensor, x: Tensor, width: int) -> list[float]:
    entries = wanda(consumer, x)
    return [
        sum(float(entries[i, j]) for i in range(consumer.shape[0]) for j in range(u * width, (u + 1) * width))
        for u in range(consumer.shape[1] // width)
    ]


def flap_units(consumer: Tensor, x: Tensor, width: int) -> list[float]:
    entries = torch.zeros(consumer.shape)
    for j in range(consumer.shape[1]):
        mean = sum(float(t) for t in x[:, j]) / len(x)
        variance = sum((float(t) - mean) ** 2 for t in x[:, j]) / len(x)
        for i in range(consumer.shape[0]):
            entries[i, j] = float(consumer[i, j]) ** 2 * variance
    units = consumer.shape[1] // width
    return [float(entries[:, u * width : (u + 1) * width].sum()) for u in range(units)]


def damped_second_moments(x: Tensor, damping: float) -> Tensor:
    x = x.double()
    H = x.T @ x / len(x)
    live = [float(H[i, i]) for i in range(len(H)) if H[i, i] > 0]
    mean = sum(live) / len(live)
    for i in range(len(H)):
        H[i, i] = (H[i, i] if H[i, i] > 0 else mean) + damping * mean
    return H


def sparsegpt(
    W: Tensor, x: Tensor, sparsity: float, n_of_m: tuple[int, int] | None, block: int, damping: float
) -> tuple[Tensor, Tensor]:
    """(weight, mask) with one explicit inverse of the remaining columns at every step (OBS, eq. 3 of SparseGPT):
    the weight at column j is removed at cost w² / inv_00, and its columns to the right absorb the error."""
    W, H = W.double().clone(), damped_second_moments(x, damping)
    rows, columns = W.shape
    live = x.double().square().sum(0) > 0
    mask = torch.ones(rows, columns, dtype=torch.bool)
    inverses = [torch.linalg.inv(H[j:, j:]) for j in range(columns)]
    removed = 0

    def cost(i: int, j: int) -> float:
        return float(W[i, j] ** 2 / inverses[j][0, 0]) * float(live[j])

    for j in range(columns):
        if n_of_m is None and j % block == 0:
            stop = min(j + block, columns)
            due = math.floor(rows * stop * sparsity + 0.5) - removed
            removed += due
            entries = sorted(itertools.product(range(rows), range(j, stop)), key=lambda e: cost(*e))
            for entry in entries[:due]:
                mask[entry] = False
        if n_of_m is not None and j % n_of_m[1] == 0:
            for i in range(rows):
                for worst in sorted(range(j, j + n_of_m[1]), key=lambda c, i=i: cost(i, c))[: n_of_m[1] - n_of_m[0]]:
                    mask[i, worst] = False
        for i in range(rows):
            if not mask[i, j]:
                W[i, j:] -= W[i, j] / inverses[j][0, 0] * inverses[j][0]
                W[i, j] = 0
    return W, mask


def best_entries(scores: Tensor, removed: int, n_of_m: tuple[int, int] | None) -> Tensor:
    """Mask of the largest magnitudes: all but `removed` of all entries, or N of each M."""
    mask = torch.ones(scores.shape, dtype=torch.bool)
    entries = list(itertools.product(range(scores.shape[0]), range(scores.shape[1])))
    if n_of_m is None:
        for entry in sorted(entries, key=lambda e: (abs(float(scores[e])), -e[0], -e[1]))[:removed]:
            mask[entry] = False
        return mask
    n, m = n_of_m
    for i, first in itertools.product(range(scores.shape[0]), range(0, scores.shape[1], m)):
        for j in sorted(range(first, first + m), key=lambda j, i=i: (abs(float(scores[i, j])), -j))[: m - n]:
            mask[i, j] = False
    return mask


def alps_mask(W: Tensor, G: Tensor, sparsity: float, n_of_m: tuple[int, int] | None, steps: int) -> Tensor:
    """Algorithm 1 of ALPS with an explicit inverse at every step, in the paper's names: V is the dual."""
    W, G, rho = W.double(), G.double(), 0.1
    removed = math.floor(W.numel() * sparsity + 0.5)
    support = best_entries(W, removed, n_of_m)
    D, V = W * support, torch.zeros(W.shape, dtype=torch.float64)
    kept, now = int(support.sum()), support
    for step in range(steps):
        dense = (W @ G - V + rho * D) @ torch.linalg.inv(G + rho * torch.eye(len(G), dtype=torch.float64))
        now = best_entries(dense + V / rho, removed, n_of_m)
        D = (dense + V / rho) * now
        V = V + rho * (dense - D)
        if step % 3 == 2:
            left = int((support & ~now).sum())
            if left == 0:
                return now
            rho *= 1.3 if left >= 0.1 * kept else 1.2 if left >= 0.005 * kept else 1.1
            support = now
    return now


def best_fit_error(W: Tensor, H: Tensor, kept: list[int]) -> float:
    """min over V on the kept inputs of tr((W - V) H (W - V)ᵀ), by solving for V afresh."""
    difference = W.double().clone()
    if kept:
        difference[:, kept] -= W.double() @ H[:, kept] @ torch.linalg.inv(H[kept][:, kept])
    return float((difference @ H * difference).sum())


def obs(consumer: Tensor, x: Tensor, width: int, damping: float) -> tuple[list[int], list[float]]:
    """(order of removal, objective after each): at each step every candidate's full problem is solved again."""
    H = damped_second_moments(x, damping)
    remaining = list(range(consumer.shape[1] // width))
    order, objective = [], []
    while remaining:
        errors = {
            unit: best_fit_error(
                consumer, H, [j for u in remaining if u != unit for j in range(u * width, (u + 1) * width)]
            )
            for unit in remaining
        }
        worst = min(remaining, key=lambda unit: errors[unit])
        order.append(worst)
        objective.append(errors[worst])
        remaining.remove(worst)
    return order, objective


def masked_error(W: Tensor, H: Tensor, mask: Tensor) -> float:
    """The least tr((W - V) H (W - V)ᵀ) on a mask, row by row."""
    rows = zip(W, mask, strict=True)
    return sum(best_fit_error(row[None], H, kept.nonzero().flatten().tolist()) for row, kept in rows)
