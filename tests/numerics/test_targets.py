"""Targets against explicit outputs: `lstsq` in double precision on the activations of both models."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from secateur.numerics import targets
from secateur.numerics.conjugate import masked_conjugate
from secateur.numerics.least_squares import masked_least_squares
from secateur.numerics.linalg import quadratic_error
from secateur.numerics.moments import Moments
from secateur.numerics.targets import NEEDS, Target, best_bias, relative_error, retarget

TOKENS, IN, OUT = 300, 12, 5
TINY = 1e-9


class Problem:
    """One Linear on the inputs of two models, with means away from zero."""

    def __init__(self, seed: int = 0, dense_in: int = IN) -> None:
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g)

        self.X_dense = normal(TOKENS, dense_in) @ normal(dense_in, dense_in) + normal(dense_in)
        self.X = self.X_dense[:, :IN] + 0.5 * normal(TOKENS, IN) + 0.3 * normal(IN)
        self.drift = normal(TOKENS, OUT) + 2
        self.dense = normal(OUT, dense_in)
        self.W = self.dense[:, :IN]
        self.dense_bias, self.bias = normal(OUT), normal(OUT)
        self.mask = torch.rand(OUT, IN, generator=g) > 0.4

    def moments(self, target: Target) -> Moments:
        needs = NEEDS[target] | {"gram", "mean"}
        moments = Moments(IN, needs, target_features=self.dense.shape[1], drift_features=OUT)
        for part in torch.arange(TOKENS).split(77):
            drift = self.drift[part] if "drift" in needs else None
            moments.update(self.X[part], self.X_dense[part] if "cross" in needs else None, drift)
        return moments

    def outputs(self, target: Target, biased: bool) -> Tensor:
        """What the Linear should put out, (tokens, out) fp64."""
        if target == "pruned":
            return self.X.double() @ self.W.double().T
        Y = self.X_dense.double() @ self.dense.double().T
        Y = Y + self.dense_bias if biased else Y
        return Y + self.drift if target == "residual" else Y


def explicit(problem: Problem, Y: Tensor, biased: bool) -> tuple[Tensor, Tensor]:
    """(V, b): the best weights on the mask for outputs Y, row by row."""
    X = problem.X.double()
    V, b = torch.zeros(OUT, IN, dtype=torch.float64), torch.zeros(OUT, dtype=torch.float64)
    for row, kept in enumerate(problem.mask):
        inputs = torch.cat([X[:, kept], torch.ones(TOKENS, int(biased), dtype=torch.float64)], 1)
        found = torch.linalg.lstsq(inputs, Y[:, row]).solution
        V[row, kept] = found[: int(kept.sum())]
        b[row] = found[-1] if biased else 0
    return V, b


@pytest.fixture
def _no_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "ridge_of", lambda moments: TINY)


@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dense_in", [IN, IN + 4])  # units were cut before: the dense model's inputs are wider
@pytest.mark.parametrize("solver", ["exact", "conjugate"])
@pytest.mark.usefixtures("_no_ridge")
def test_a_solver_on_a_mask_finds_the_best_for_the_explicit_outputs(
    target: Target, biased: bool, dense_in: int, solver: str
) -> None:
    problem = Problem(dense_in=dense_in)
    moments = problem.moments(target)
    biased = biased and target != "pruned"
    wanted, about = retarget(problem.W, moments, target, problem.dense, biased)
    if solver == "exact":
        V = masked_least_squares(wanted, about.gram, problem.mask, TINY).weight
    else:
        V = masked_conjugate(wanted, about.gram, problem.mask, steps=200, tolerance=1e-7)
    expected, b = explicit(problem, problem.outputs(target, biased), biased)
    torch.testing.assert_close(V.double(), expected, rtol=2e-3, atol=2e-3)
    if biased:
        shift = best_bias(V, problem.bias, moments, problem.dense, problem.dense_bias)
        torch.testing.assert_close((problem.bias + shift).double(), b, rtol=2e-3, atol=5e-3)


def test_fewer_tokens_pull_more_towards_the_weights_as_they_are() -> None:
    problem = Problem()
    moments, few = problem.moments("residual"), Moments(IN, NEEDS["residual"], drift_features=OUT)
    few.update(problem.X[:90], problem.X_dense[:90], problem.drift[:90])
    assert targets.RIDGE < targets.ridge_of(moments) < targets.ridge_of(few)
    assert targets.ridge_of(few) == pytest.approx(targets.RIDGE + targets.NOISE * IN / 90)
    moved = [
        float((retarget(problem.W, m, "residual", problem.dense, biased=False)[0] - problem.W).norm())
        for m in (moments, few)
    ]
    assert moved[1] < moved[0]


def test_the_own_target_is_the_weight_itself() -> None:
    problem = Problem()
    moments = problem.moments("pruned")
    wanted, about = retarget(problem.W, moments, "pruned", problem.W, biased=True)
    assert wanted is problem.W
    assert about is moments


@pytest.mark.parametrize("target", ["dense", "residual"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tokens", [3, TOKENS])
def test_nothing_changes_where_the_streams_agree(target: Target, biased: bool, tokens: int) -> None:
    problem = Problem()
    x = problem.X[:tokens].clone()
    x[:, 4] = 0  # an input that nothing is known of
    moments = Moments(IN, NEEDS[target], drift_features=OUT)
    moments.update(x, x, torch.zeros(tokens, OUT) if target == "residual" else None)
    wanted, _ = retarget(problem.W, moments, target, problem.W, biased)
    torch.testing.assert_close(wanted, problem.W, rtol=1e-4, atol=1e-4)
    shift = best_bias(problem.W, problem.bias, moments, problem.W, problem.bias)
    torch.testing.assert_close(shift, torch.zeros(OUT), rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("biased", [False, True])
def test_no_token_is_harmless(target: Target, biased: bool) -> None:
    problem = Problem()
    moments = Moments(IN, NEEDS[target] | {"gram", "mean"}, drift_features=OUT)
    wanted, about = retarget(problem.W, moments, target, problem.W, biased)
    assert torch.equal(wanted, problem.W)
    assert about is moments
    if target != "pruned":
        assert not best_bias(problem.W, problem.bias, moments, problem.W, None).any()


@pytest.mark.parametrize("biased", [False, True])
def test_few_tokens_and_dead_inputs_stay_finite_and_close(biased: bool) -> None:
    problem = Problem()
    moments = Moments(IN, NEEDS["residual"], drift_features=OUT)
    x = problem.X[:2].clone()
    x[:, [1, 5]] = 0
    moments.update(x, problem.X_dense[:2], problem.drift[:2])
    wanted, _ = retarget(problem.W, moments, "residual", problem.W, biased)
    assert torch.isfinite(wanted).all()
    torch.testing.assert_close(wanted[:, [1, 5]], problem.W[:, [1, 5]])


def test_statistics_about_the_means() -> None:
    problem = Problem()
    problem.X[:, 3] = 7  # never varies: a bias can stand in for it
    moments = problem.moments("residual")
    about = moments.centred()
    X, D, R = (t.double() for t in (problem.X, problem.X_dense, problem.drift))
    X, D, R = X - X.mean(0), D - D.mean(0), R - R.mean(0)
    for name, expected in {"gram": X.T @ X, "cross": D.T @ X, "drift": R.T @ X}.items():
        torch.testing.assert_close(
            getattr(about, name).double(), expected / TOKENS, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert about.n == TOKENS
    assert not about.mean.any()
    assert not about.gram[3].any()
    assert about.gram.diagonal().min() == 0
    torch.testing.assert_close(about.second_moment, about.gram.diagonal())
    torch.testing.assert_close(about.var, moments.var, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("biased", [False, True])
def test_relative_errors(biased: bool) -> None:
    problem = Problem()
    V = problem.W * problem.mask
    X = problem.X.double()
    left = X @ (problem.W - V).double().T
    left = left - left.mean(0) if biased else left
    expected = left.square().sum() / (X @ problem.W.double().T).square().sum()
    moments = problem.moments("pruned")
    assert relative_error(problem.W, V, moments, biased) == pytest.approx(float(expected), rel=1e-4)
    assert relative_error(torch.zeros(OUT, IN), V, moments, biased) == 0
    assert quadratic_error(problem.W, V, moments.gram)[1] == pytest.approx(
        relative_error(problem.W, V, moments, False)
    )
