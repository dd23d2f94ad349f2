"""Sums against the plain formulas over all tokens at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.numerics import moments as moments_module
from secateur.numerics.moments import Moments

ALL = frozenset({"mean", "rms", "gram", "cross"})


@pytest.fixture
def streams() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(60, 7) + 2
    return x, x @ torch.randn(7, 5)


def check(moments: Moments, x: Tensor, target: Tensor) -> None:
    x, target = x.double(), target.double()
    n = len(x)
    expected = {
        "mean": x.mean(0),
        "var": x.var(0, unbiased=False),
        "rms": x.square().mean(0).sqrt(),
        "second_moment": x.square().mean(0),
        "gram": x.T @ x / n,
        "covariance": torch.cov(x.T, correction=0),
        "cross": target.T @ x / n,
        "target_mean": target.mean(0),
    }
    assert moments.n == n
    for name, value in expected.items():
        found = getattr(moments, name)
        assert found.dtype == torch.float32, name
        torch.testing.assert_close(
            found.double(), value, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_batches_of_any_shape_add_up(streams: tuple[Tensor, Tensor]) -> None:
    x, target = streams
    moments = Moments(7, ALL, target_features=5)
    moments.update(x[:24].view(2, 3, 4, 7), target[:24].view(2, 3, 4, 5))
    moments.update(x[24:], target[24:])
    check(moments, x, target)


def test_parts_merge_into_the_whole(streams: tuple[Tensor, Tensor]) -> None:
    x, target = streams
    parts = [Moments(7, ALL, target_features=5) for _ in range(2)]
    parts[0].update(x[:11], target[:11])
    parts[1].update(x[11:], target[11:])
    parts[0].merge(parts[1])
    check(parts[0], x, target)


def test_summing_raw_tensors_is_an_all_reduce(streams: tuple[Tensor, Tensor]) -> None:
    x, target = streams
    parts = [Moments(7, ALL, target_features=5) for _ in range(2)]
    parts[0].update(x[:40], target[:40])
    parts[1].update(x[40:], target[40:])
    for mine, theirs in zip(parts[0].tensors(), parts[1].tensors(), strict=True):
        mine += theirs
    check(parts[0], x, target)


def test_wide_gram_is_built_from_blocks(monkeypatch: pytest.MonkeyPatch, streams: tuple[Tensor, Tensor]) -> None:
    monkeypatch.setattr(moments_module, "GRAM_BLOCK", 3)
    x, target = streams
    moments = Moments(7, ALL, target_features=5)
    moments.update(x, target)
    check(moments, x, target)


def test_half_precision_inputs_are_summed_in_fp32() -> None:
    x = torch.full((4000, 2), 10.0, dtype=torch.float16)  # the sum of squares overflows fp16
    moments = Moments(2, frozenset({"rms", "gram"}))
    moments.update(x)
    torch.testing.assert_close(moments.rms, torch.tensor([10.0, 10.0]))
    torch.testing.assert_close(moments.gram, torch.full((2, 2), 100.0))


def test_gram_alone_gives_rms() -> None:
    x = torch.randn(9, 3)
    moments = Moments(3, frozenset({"gram"}))
    moments.update(x)
    torch.testing.assert_close(moments.rms, x.square().mean(0).sqrt())


def test_no_token_is_all_zero() -> None:
    moments = Moments(3, ALL)
    moments.update(torch.zeros(0, 3), torch.zeros(0, 3))
    assert moments.n == 0
    assert not moments.covariance.any()
    assert not moments.var.any()


def test_memo_lasts_until_the_next_update() -> None:
    moments = Moments(2, frozenset({"rms"}))
    calls: list[int] = []
    for _ in range(2):
        moments.once("key", lambda: calls.append(1))
    assert len(calls) == 1
    moments.update(torch.ones(1, 2))
    moments.once("key", lambda: calls.append(1))
    assert len(calls) == 2


def test_what_was_not_gathered_is_named() -> None:
    with pytest.raises(SecateurError, match="ask for 'gram' before"):
        _ = Moments(2, frozenset({"rms"})).gram
    with pytest.raises(SecateurError, match="unknown; known are"):
        Moments(2, frozenset({"median"}))
    with pytest.raises(ValueError, match="last axis should be 2"):
        Moments(2, frozenset({"rms"})).update(torch.ones(3, 4))
