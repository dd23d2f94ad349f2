"""Gradual ADMM and 1-swaps against loops in fp64 that try everything."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from secateur.methods import admm, alps, swap
from secateur.numerics.linalg import damped, quadratic_error
from secateur.numerics.patterns import Pattern
from tests.methods import references
from tests.methods.activations import gathered, inputs, weights

FREE = Pattern.parse("free")
each_pattern = pytest.mark.parametrize("pattern", ["free", "2:4"])


def best_swap(W: Tensor, V: Tensor, G: Tensor, mask: Tensor, group: int) -> float:
    """The least that one swap inside a row (and its group) can make of the row's error, by trying all."""

    def error(v: Tensor) -> float:
        return float((W - v) @ G @ (W - v))

    least = error(V)
    for p, q in itertools.product(range(len(W)), repeat=2):
        if not mask[p] or mask[q] or p // group != q // group:
            continue
        v = V.clone()
        v[p] = 0
        v[q] = ((W - v) @ G)[q] / G[q, q]
        least = min(least, error(v))
    return least


@each_pattern
def test_a_swap_is_the_best_there_is(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "SWAPS", 1)
    shape, W = Pattern.parse(pattern), weights(6, 16).double()
    G = damped(gathered(inputs(60, 16)).gram, 1e-3, torch.float64)
    mask = shape.mask(W.abs(), 0.5)
    V = W * mask
    found, after = swap.swap(W, V, G, mask, shape, torch.zeros(6))
    for w, v, m, new in zip(W, V, mask, found, strict=True):
        expected = best_swap(w, v, G, m, shape.of or 16)
        assert float((w - new) @ G @ (w - new)) == pytest.approx(expected, rel=1e-9)
    assert torch.equal(after.sum(1), mask.sum(1))
    assert shape.holds(after)
    assert not bool(found[~after].any())


@each_pattern
@pytest.mark.parametrize("seed", range(3))
def test_swaps_only_improve_on_alps(pattern: str, seed: int) -> None:
    shape = Pattern.parse(pattern)
    W, moments = weights(24, 48, seed), gathered(inputs(200, 48, seed + 10))
    G = damped(moments.gram, alps.DAMPING, torch.float32)
    for sparsity in (0.3, 0.6, 0.9):
        before = quadratic_error(W, alps.solve(W, moments, shape, sparsity).weight, G)[0]
        found = swap.solve(W, moments, shape, sparsity)
        assert quadratic_error(W, found.weight, G)[0] <= before * (1 + 1e-5)
        assert shape.holds(found.mask)


def test_swaps_find_better_masks_where_there_are_any() -> None:
    """From a mask that looks at weights alone a local search has to get far."""
    W, moments = weights(24, 48), gathered(inputs(200, 48))
    G = damped(moments.gram, 1e-3, torch.float32)
    mask = FREE.mask(W.abs(), 0.6)
    V, after = swap.improve(W, W * mask, G, mask, FREE)
    own = sum(references.masked_error(W[i : i + 1], G.double(), mask[i : i + 1]) for i in range(24))
    assert quadratic_error(W, V, G)[0] < 0.8 * own
    assert torch.equal(after, V != 0)


def admm_mask(W: Tensor, G: Tensor, sparsity: float, n_of_m: tuple[int, int] | None) -> Tensor:
    """Algorithm 1 with explicit inverses, entry by entry where it chooses."""
    rows, columns = W.shape
    V, dual, keep = W.clone(), torch.zeros_like(W), torch.ones_like(W, dtype=torch.bool)
    inverse = torch.linalg.inv(G + torch.eye(columns, dtype=W.dtype))
    for step in range(1, admm.RAMP + admm.SETTLE + 1):
        scores = (V + dual).abs()
        if step <= admm.RAMP:
            if n_of_m is None:
                doomed = sorted(itertools.product(range(rows), range(columns)), key=lambda e: float(scores[e]))
                total = int(rows * columns * sparsity + 0.5)
            else:
                doomed = []
                for i, first in itertools.product(range(rows), range(0, columns, n_of_m[1])):
                    group = sorted(range(first, first + n_of_m[1]), key=lambda j: float(scores[i, j]))
                    doomed += [(i, j) for j in group[: n_of_m[1] - n_of_m[0]]]
                doomed.sort(key=lambda e: float(scores[e]))
                total = len(doomed)
            part = (step / admm.RAMP) ** (1 / 3)
            keep = torch.ones_like(keep)
            for entry in doomed[: int(total * part + 0.5)]:
                keep[entry] = False
        sparse = (V + dual) * keep
        dual = dual + V - sparse
        V = (W @ G + sparse - dual) @ inverse
    return keep


@pytest.mark.parametrize(("pattern", "sparsity"), [("free", 0.3), ("free", 0.7), ("2:4", 0.5)])
def test_gradual_admm(pattern: str, sparsity: float) -> None:
    W, x, shape = weights(7, 16), inputs(90, 16), Pattern.parse(pattern)
    H = references.damped_second_moments(x, admm.DAMPING)
    scale = H.diagonal().rsqrt()
    G = H * scale[:, None] * scale
    n_of_m = None if shape.kept is None or shape.of is None else (shape.kept, shape.of)
    expected = admm_mask(W.double() / scale, G, sparsity, n_of_m)
    found = admm.solve(W, gathered(x), shape, sparsity)
    assert torch.equal(found.mask, expected)
    assert quadratic_error(W, found.weight, H.float())[0] == pytest.approx(
        references.masked_error(W, H, expected), rel=1e-3
    )
