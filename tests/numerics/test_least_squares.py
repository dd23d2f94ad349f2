"""Fits against `lstsq` on the activations themselves, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.numerics import least_squares
from secateur.numerics.least_squares import least_squares_columns, masked_least_squares
from secateur.numerics.linalg import quadratic_error

TINY = 1e-9  # a ridge too small to see: the plain least-squares solution


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor]:
    """(x, W, y): inputs with a mean, weights, and another target than W x."""
    torch.manual_seed(0)
    x = (torch.randn(200, 12) @ torch.randn(12, 12) + torch.randn(12)).double()
    W = torch.randn(5, 12).double()
    return x, W, x @ W.T + 0.5 * torch.randn(200, 5).double() + 3


def with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def close(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("other_target", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_columns_equal_lstsq(data: tuple[Tensor, Tensor, Tensor], biased: bool, other_target: bool) -> None:
    x, W, y = data
    y = y if other_target else x @ W.T
    keep = torch.tensor([0, 3, 4, 7, 8, 11])
    fit = least_squares_columns(
        W,
        x.T @ x / len(x),
        keep,
        TINY,
        mean=x.mean(0) if biased else None,
        target_cross=y.T @ x / len(x) if other_target else None,
        target_mean=y.mean(0) if other_target else None,
    )
    inputs = with_ones(x[:, keep]) if biased else x[:, keep]
    expected = torch.linalg.lstsq(inputs, y).solution.T
    close(fit.weight, expected[:, :6])
    if biased:
        close(fit.bias, expected[:, 6])
    else:
        assert fit.bias is None
    masked = x[:, keep] @ W[:, keep].T
    before = (y - masked - (y - masked).mean(0) * biased).square().sum()
    after = (y - inputs @ expected.T).square().sum()
    assert fit.gain == pytest.approx(
        float((before - after) / (x @ W.T - biased * (x @ W.T).mean(0)).square().sum()), rel=1e-4
    )


@pytest.mark.parametrize("other_target", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("chunk", [2**27, 1000])
def test_masks_equal_lstsq_of_each_row(
    data: tuple[Tensor, Tensor, Tensor],
    biased: bool,
    other_target: bool,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(least_squares, "CHUNK_BYTES", chunk)
    x, W, y = data
    y = y if other_target else x @ W.T
    mask = torch.rand(5, 12) > 0.4
    mask[1], mask[2] = False, True
    fit = masked_least_squares(
        W,
        x.T @ x / len(x),
        mask,
        TINY,
        mean=x.mean(0) if biased else None,
        target_cross=y.T @ x / len(x) if other_target else None,
        target_mean=y.mean(0) if other_target else None,
    )
    assert not fit.weight[~mask].any()
    for row in range(5):
        inputs = x[:, mask[row]]
        inputs = with_ones(inputs) if biased else inputs
        expected = torch.linalg.lstsq(inputs, y[:, row : row + 1]).solution.flatten()
        close(fit.weight[row, mask[row]], expected[: int(mask[row].sum())])
        if biased:
            assert fit.bias is not None
            close(fit.bias[row], expected[-1])


def test_the_ridge_pulls_towards_the_old_weights(data: tuple[Tensor, Tensor, Tensor]) -> None:
    x, W, _ = data
    G, keep = x.T @ x / len(x), torch.arange(8)
    steps = [
        float((least_squares_columns(W, G, keep, ridge).weight - W[:, :8]).norm())
        for ridge in (1e-6, 1e-2, 1.0, 10.0)
    ]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < 0.5 * steps[0]


def test_nothing_removed_changes_nothing(data: tuple[Tensor, Tensor, Tensor]) -> None:
    x, W, _ = data
    G = x.T @ x / len(x)
    for fit in (
        least_squares_columns(W, G, torch.ones(12, dtype=torch.bool), mean=x.mean(0)),
        masked_least_squares(W, G, torch.ones(5, 12, dtype=torch.bool), mean=x.mean(0)),
    ):
        close(fit.weight, W)
        close(fit.bias, torch.zeros(5, dtype=torch.float64))
        assert fit.gain == pytest.approx(0)


def test_everything_removed_leaves_the_mean(data: tuple[Tensor, Tensor, Tensor]) -> None:
    x, W, _ = data
    G = x.T @ x / len(x)
    columns = least_squares_columns(W, G, torch.zeros(12, dtype=torch.bool), mean=x.mean(0))
    assert columns.weight.shape == (5, 0)
    close(columns.bias, W @ x.mean(0))
    assert not masked_least_squares(W, G, torch.zeros(5, 12, dtype=torch.bool)).weight.any()


@pytest.mark.parametrize("tokens", [1, 3])
def test_few_tokens_and_dead_inputs_are_harmless(tokens: int) -> None:
    torch.manual_seed(1)
    x = torch.randn(tokens, 10)
    x[:, [2, 6]] = 0
    W, G = torch.randn(4, 10), x.T @ x / tokens
    mask = torch.rand(4, 10) > 0.5
    fit = masked_least_squares(W, G, mask)
    assert torch.isfinite(fit.weight).all()
    torch.testing.assert_close(fit.weight[:, [2, 6]], (W * mask)[:, [2, 6]])
    assert quadratic_error(W, fit.weight, G)[0] <= quadratic_error(W, W * mask, G)[0] * (1 + 1e-6)
    columns = least_squares_columns(W, G, mask[0], mean=x.mean(0))
    assert torch.isfinite(columns.weight).all()
    assert columns.gain >= -1e-9
