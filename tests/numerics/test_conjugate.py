"""Conjugate gradients on masks against exact solutions in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.numerics.conjugate import masked_conjugate
from secateur.numerics.least_squares import masked_least_squares
from secateur.numerics.linalg import damped, quadratic_error


def problem(seed: int = 0, rows: int = 9, columns: int = 40, tokens: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """(W, G positive definite, mask) with correlated inputs of uneven size."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=g) / columns**0.5 + torch.eye(columns)
    x = torch.randn(tokens, columns, generator=g) @ mix * (torch.rand(columns, generator=g) * 10 + 0.01)
    W = torch.randn(rows, columns, generator=g)
    return W, damped(x.T @ x / tokens, 1e-3, torch.float32), torch.rand(rows, columns, generator=g) > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_exact_solution(seed: int) -> None:
    W, G, mask = problem(seed)
    exact = masked_least_squares(W.double(), G.double(), mask, 1e-12).weight
    found = masked_conjugate(W, G, mask, steps=200, tolerance=1e-7)
    assert not found[~mask].any()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-2)
    errors = [quadratic_error(W, V, G)[0] for V in (found, exact)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
@pytest.mark.parametrize("tokens", [2, 20, 300])
def test_is_never_worse_than_masking(steps: int, tokens: int) -> None:
    W, G, mask = problem(tokens=tokens)
    W, G = W * 100, G / 1e6  # of any scale
    row_errors = [((W - V) @ G * (W - V)).sum(1) for V in (masked_conjugate(W, G, mask, steps=steps), W * mask)]
    assert (row_errors[0] <= row_errors[1] * (1 + 1e-5)).all()


@pytest.mark.parametrize("steps", [0, 1, 50])
def test_a_start_that_is_given_is_never_made_worse(steps: int) -> None:
    W, G, mask = problem()
    exact = masked_least_squares(W.double(), G.double(), mask, 1e-12).weight
    for start in (exact + 0.01, torch.full_like(W, 3.0), exact):
        found = masked_conjugate(W, G, mask, start, steps)
        assert not found[~mask].any()
        assert quadratic_error(W, found, G)[0] <= quadratic_error(W, start * mask, G)[0] * (1 + 1e-5)
        if steps == 50:
            assert quadratic_error(W, found, G)[0] == pytest.approx(quadratic_error(W, exact, G)[0], rel=1e-3)


def test_rows_do_not_depend_on_each_other() -> None:
    W, G, mask = problem()
    together = masked_conjugate(W, G, mask, steps=200, tolerance=1e-7)
    for row in range(len(W)):
        alone = masked_conjugate(W[row : row + 1], G, mask[row : row + 1], steps=200, tolerance=1e-7)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-2, atol=1e-2)


def test_empty_rows_full_rows_and_dead_inputs_are_harmless() -> None:
    W, G, mask = problem()
    mask[0], mask[1], W[2] = False, True, 0
    G[[3, 5]] = G[:, [3, 5]] = 0
    found = masked_conjugate(W, G, mask)
    assert torch.isfinite(found).all()
    assert not found[0].any()
    torch.testing.assert_close(found[1], W[1])
    assert not found[2].any()
    assert torch.equal(found[:, [3, 5]], (W * mask)[:, [3, 5]])


def test_arguments_stay_as_they_are() -> None:
    W, G, mask = problem()
    copies = [t.clone() for t in (W, G, mask)]
    masked_conjugate(W, G, mask)
    assert all(torch.equal(a, b) for a, b in zip((W, G, mask), copies, strict=True))
