"""Factors and their damping rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.numerics import linalg
from secateur.numerics.linalg import damped_cholesky, inverse, inverse_upper, invert_lower, quadratic_error


def gram(features: int, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, features, generator=generator)
    return x.T @ x / tokens


def test_damping_is_relative_to_the_mean_diagonal() -> None:
    G = gram(12, 100)
    factor, used = damped_cholesky(G, 0.05)
    assert used == 0.05
    torch.testing.assert_close(factor @ factor.T, G + 0.05 * G.diagonal().mean() * torch.eye(12))


def test_dead_inputs_stand_alone_and_count_for_nothing() -> None:
    G = gram(12, 100)
    dead = torch.tensor([0, 5, 11])
    wide = torch.zeros(15, 15)
    live = torch.tensor([i for i in range(15) if i not in dead])
    wide[live[:, None], live] = G
    factor, used = damped_cholesky(wide, 0.05)
    product = factor @ factor.T
    assert used == 0.05
    torch.testing.assert_close(product[live[:, None], live], G + 0.05 * G.diagonal().mean() * torch.eye(12))
    assert bool((product[dead].sum(1) == product[dead, dead]).all())


def test_all_dead_is_the_identity() -> None:
    factor, _ = damped_cholesky(torch.zeros(4, 4), 0.0)
    torch.testing.assert_close(factor.double(), torch.eye(4, dtype=torch.float64))


def test_failure_raises_the_damping_and_says_so() -> None:
    G = gram(8, 50)
    lowest = float(torch.linalg.eigvalsh(G)[0])
    G -= (lowest + 0.02) * torch.eye(8)  # indefinite by 0.02, mean diagonal near 0.5
    factor, used = damped_cholesky(G, 0.001)
    assert used == pytest.approx(0.1)
    torch.testing.assert_close(
        factor.double() @ factor.double().T, (G + 0.1 * G.diagonal().mean() * torch.eye(8)).double()
    )
    assert damped_cholesky(G, 0.0)[1] == pytest.approx(0.1)


def test_hopeless_matrices_are_refused() -> None:
    G = torch.tensor([[1.0, 100.0], [100.0, 1.0]])
    with pytest.raises(SecateurError, match="not positive definite"):
        damped_cholesky(G)
    with pytest.raises(SecateurError, match="not finite"):
        damped_cholesky(torch.full((2, 2), float("nan")))


def test_poor_conditioning_is_met_with_fp64() -> None:
    assert damped_cholesky(gram(16, 100), 0.01)[0].dtype == torch.float32
    assert damped_cholesky(gram(16, 100), 1e-9)[0].dtype == torch.float64


@pytest.mark.parametrize("features", [1, 5, 128, 129, 300])
def test_triangular_inverse(features: int) -> None:
    L = torch.linalg.cholesky(gram(features, 4 * features).double())
    torch.testing.assert_close(invert_lower(L) @ L, torch.eye(features, dtype=torch.float64))


def test_inverse_upper_is_the_cholesky_factor_of_the_inverse() -> None:
    G = gram(150, 1000)
    U, used = inverse_upper(G, 0.01)
    A = torch.linalg.inv(G.double() + used * G.double().diagonal().mean() * torch.eye(150))
    torch.testing.assert_close(U.double(), torch.linalg.cholesky(A, upper=True), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(inverse(G, 0.01)[0], A)


def test_quadratic_error_is_the_error_of_the_outputs() -> None:
    torch.manual_seed(0)
    x, W, V = torch.randn(40, 6), torch.randn(3, 6), torch.randn(3, 6)
    error, relative = quadratic_error(W, V, x.T @ x / 40)
    expected = (x @ (W - V).T).square().sum(1).mean()
    assert error == pytest.approx(float(expected), rel=1e-5)
    assert relative == pytest.approx(float(expected / (x @ W.T).square().sum(1).mean()), rel=1e-5)
    assert quadratic_error(W * 0, V * 0, linalg.damped(torch.zeros(6, 6), 0, torch.float32)) == (0.0, 0.0)
