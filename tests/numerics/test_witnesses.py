"""The tokens behind the statistics, against all of them at once."""

from __future__ import annotations

import pytest
import torch

from secateur.numerics import token_samples as token_samples
from secateur.numerics.moments import Moments
from secateur.numerics.token_samples import TokenSamples


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_samples, "SAMPLE", 16)


def seen(x: torch.Tensor, sizes: list[int]) -> TokenSamples:
    found = TokenSamples(x.shape[1], sample=True, max_activating=True)
    for part in x.split(sizes):
        found.update(part)
    return found


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [30, 0, 70]])
def test_every_stride_th_token_and_the_largest_ones(sizes: list[int]) -> None:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    found = seen(x, sizes)
    torch.testing.assert_close(found.sample, x[::8])
    values, places = found.max_activating
    for j in range(3):
        order = x[:, j].abs().argsort(descending=True)[: token_samples.PEAKS]
        assert places[:, j].tolist() == order.tolist()
        torch.testing.assert_close(values[:, j], x[order, j])


def test_parts_join_into_the_whole() -> None:
    x = torch.randn(96, 3, generator=torch.Generator().manual_seed(0))
    whole = seen(x, [96])
    joined = TokenSamples.join([seen(x[:64], [64]), seen(x[64:], [32])])
    torch.testing.assert_close(joined.sample, whole.sample)
    assert torch.equal(joined.max_activating[1], whole.max_activating[1])
    assert joined.seen == 96


def test_moments_carry_them() -> None:
    x = torch.randn(40, 3)
    moments = Moments(3, frozenset({"mean_abs", "sample", "peaks", "gram", "mean"}))
    moments.update(x[:25])
    moments.update(x[25:])
    torch.testing.assert_close(moments.mean_abs, x.abs().mean(0))
    torch.testing.assert_close(moments.sample, x[::4])
    assert moments.centred().token_samples is moments.token_samples
