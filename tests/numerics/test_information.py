"""Estimators of mutual information where it is known in closed form, and against an estimator of another kind."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.feature_selection import mutual_info_regression
from torch import Tensor

from secateur.numerics.information import (
    copula_information,
    gaussian_information,
    kernels,
    normal_scores,
    pairwise_renyi,
    renyi_entropy,
    renyi_information,
    shuffled,
    silverman,
)


def gaussians(rho: float, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two Gaussians with this correlation: I = -½ log2(1 - ρ²)."""
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return z[:, :1], rho * z[:, :1] + math.sqrt(1 - rho**2) * z[:, 1:]


def bits(rho: float) -> float:
    return -0.5 * math.log2(1 - rho**2)


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8, 0.95])
def test_gaussian_and_copula(rho: float) -> None:
    x, y = gaussians(rho, 4000)
    covariance = torch.cov(torch.cat([x, y], 1).T)
    assert gaussian_information(covariance, [0], [1]) == pytest.approx(bits(rho), abs=0.06)
    assert copula_information(x, y) == pytest.approx(bits(rho), abs=0.06)
    # Exactly, from the true covariance.
    assert gaussian_information(torch.tensor([[1, rho], [rho, 1]]), [0], [1]) == pytest.approx(bits(rho), abs=1e-6)


def test_several_variables_know_more_than_each() -> None:
    """c = a + b of independent a, b: half a bit from each, infinitely many from both, less with noise."""
    a, b, noise = (torch.randn(4000, 1, generator=torch.Generator().manual_seed(s)) for s in range(3))
    c = a + b + 0.5 * noise
    C = torch.cov(torch.cat([a, b, c], 1).T)
    alone, together = gaussian_information(C, [0], [2]), gaussian_information(C, [0, 1], [2])
    assert alone == pytest.approx(0.5 * math.log2(2.25 / 1.25), abs=0.05)
    assert together == pytest.approx(0.5 * math.log2(2.25 / 0.25), abs=0.05)


def test_a_copula_does_not_see_monotonic_changes() -> None:
    x, y = gaussians(0.7, 500)
    assert copula_information(x.exp(), y**3) == pytest.approx(copula_information(x, y), abs=1e-9)


def test_equal_values_share_their_rank() -> None:
    found = normal_scores(torch.tensor([[3.0], [1.0], [1.0], [2.0]]))
    assert found[1] == found[2]
    assert found.flatten().argsort().tolist()[-2:] == [3, 0]


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_renyi_less_its_bias_is_near_the_truth_and_the_neighbour_estimate(rho: float) -> None:
    x, y = gaussians(rho, 600)
    raw = renyi_information(x, y)
    bias = sum(renyi_information(x, shuffled(y, seed)) for seed in range(3)) / 3
    ksg = float(mutual_info_regression(x.numpy(), y.flatten().numpy(), random_state=0)[0]) / math.log(2)
    assert ksg == pytest.approx(bits(rho), abs=0.12)
    assert raw - bias == pytest.approx(bits(rho), abs=0.3)
    assert raw - bias == pytest.approx(ksg, abs=0.35)


def test_few_samples_are_nearly_all_bias() -> None:
    """Which is why a raw estimate must not be reported alone."""
    x, y = gaussians(0.0, 64)
    raw, bias = renyi_information(x, y), renyi_information(x, shuffled(y, 1))
    assert raw > 0.2
    assert abs(raw - bias) < 0.5 * raw


def test_renyi_entropy_of_known_spectra() -> None:
    for alpha in (0.5, 1.01, 2.0):
        assert renyi_entropy(torch.eye(8), alpha) == pytest.approx(3, abs=1e-9)
        assert renyi_entropy(torch.ones(8, 8), alpha) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("w", [1, 3])
def test_all_pairs_at_once(w: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one eigendecomposition for each pair."""
    monkeypatch.setattr("secateur.numerics.information.CHUNK", 5000)
    base = torch.randn(90, 4, w, generator=torch.Generator().manual_seed(0))
    base[:, 3] = base[:, 0] + 0.3 * base[:, 1]
    base[:, 2] = 5  # never varies
    raw, bias = pairwise_renyi(base)
    other = shuffled(base)
    for k in range(4):
        for i in range(4):
            if k != i:
                assert float(raw[k, i]) == pytest.approx(pair(base[:, k], base[:, i]), abs=1e-4)
                both = [pair(base[:, k], other[:, i]), pair(base[:, i], other[:, k])]
                joint = -math.log2(sum(2 ** -(entropy(base, k) + entropy(base, i) - b) for b in both) / 2)
                assert float(bias[k, i]) == pytest.approx(entropy(base, k) + entropy(base, i) - joint, abs=1e-4)
    assert float(raw[0, 3]) > float(raw[0, 1])
    assert float(raw[0, 2]) == pytest.approx(0, abs=1e-5)


def entropy(x: Tensor, unit: int) -> float:
    z = x[:, unit : unit + 1].double()
    return renyi_entropy(kernels(z, silverman(z))[0], 2.0)


def pair(x: Tensor, y: Tensor) -> float:
    return renyi_information(x, y, 2.0)
