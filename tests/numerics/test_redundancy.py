"""What kept units know of removed ones, against regressions and determinants of the tokens themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from secateur.numerics.redundancy import redundancy

RIDGE = 1e-9


def tokens(features: int, n: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(features, features, generator=generator) / 2 + torch.eye(features)
    return (torch.randn(n, features, generator=generator) @ mix).double()


@pytest.mark.parametrize("width", [1, 3])
def test_against_regressions(width: int) -> None:
    units = 7
    x = tokens(units * width)
    W = torch.randn(5, units * width, generator=torch.Generator().manual_seed(1)).double()
    keep = torch.tensor([True, False, True, True, False, True, True])
    found = redundancy(W.float(), (x.T @ x / len(x)).float(), keep, width, RIDGE)
    kept = keep.repeat_interleave(width)
    whole = (x @ W.T).square().sum()
    for row, unit in enumerate((1, 4)):
        own = slice(unit * width, (unit + 1) * width)
        guess = x[:, kept] @ torch.linalg.lstsq(x[:, kept], x[:, own]).solution
        residual = x[:, own] - guess
        dets = [float(torch.logdet(z.T @ z)) for z in (x[:, own], residual)]
        assert float(found.bits[row]) == pytest.approx((dets[0] - dets[1]) / 2 / math.log(2), rel=1e-3)
        out, lost = x[:, own] @ W[:, own].T, residual @ W[:, own].T
        assert float(found.energy[row]) == pytest.approx(float(out.square().sum() / whole), rel=1e-4)
        assert float(found.restored[row]) == pytest.approx(
            float(1 - lost.square().sum() / out.square().sum()), rel=1e-3
        )
        # A kept unit's share: how its own part of the guess goes along with what is guessed.
        B = torch.linalg.lstsq(x[:, kept], x[:, own]).solution
        parts = [
            float((((x[:, kept][:, j : j + width] @ B[j : j + width]) @ W[:, own].T) * out).sum())
            for j in range(0, int(kept.sum()), width)
        ]
        order = sorted(range(5), key=lambda k: -parts[k])
        assert found.predictors[row].tolist() == [keep.nonzero().flatten().tolist()[k] for k in order]
        positive = [max(part, 0.0) for part in parts]
        expected = [positive[k] / sum(positive) for k in order]
        assert found.shares[row].tolist() == pytest.approx(expected, abs=1e-3)
        assert float(found.shares[row].sum()) == pytest.approx(1, abs=1e-5)  # all five are shown here


def test_no_share_exceeds_the_whole_where_kept_units_correct_each_other() -> None:
    """The removed unit is the difference of two kept ones that are nearly alike."""
    generator = torch.Generator().manual_seed(0)
    common, noise, own = (torch.randn(2000, generator=generator) for _ in range(3))
    x = torch.stack([common - 0.9 * (common + 0.3 * noise), common + 0.01 * own, common + 0.3 * noise], 1)
    found = redundancy(torch.ones(2, 3), x.T @ x / len(x), torch.tensor([False, True, True]), 1)
    assert found.shares[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-9)


def test_a_copy_is_known_and_noise_is_not() -> None:
    x = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    x[:, 3] = x[:, 1]
    keep = torch.tensor([False, True, True, False])
    found = redundancy(torch.ones(2, 4), x.T @ x / len(x), keep, 1)
    assert float(found.bits[0]) < 0.01
    assert float(found.restored[0]) < 0.01
    assert float(found.bits[1]) > 4
    assert float(found.restored[1]) > 0.99
    assert found.predictors[1, 0] == 1
    assert float(found.shares[1, 0]) == pytest.approx(1, abs=0.01)


def test_units_that_are_never_on() -> None:
    x = torch.randn(50, 3)
    x[:, 0] = 0
    found = redundancy(torch.ones(2, 3), x.T @ x / 50, torch.tensor([False, True, True]), 1)
    assert found.energy.tolist() == [0]
    assert float(found.bits[0]) == pytest.approx(0, abs=1e-9)
    assert all(torch.isfinite(column).all() for column in found)


def test_nothing_removed() -> None:
    found = redundancy(torch.ones(2, 3), torch.eye(3), torch.ones(3, dtype=torch.bool), 1)
    assert len(found.bits) == len(found.predictors) == 0
