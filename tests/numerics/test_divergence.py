"""The divergence of predictions against a slow one in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from secateur.numerics import divergence
from secateur.numerics.divergence import forward_kl, kl_of_each, nll_of_each
from tests.predictions import VOCABULARY, softmax, two_logits


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    return two_logits()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_forward_kl(temperature: float, logits: tuple[Tensor, Tensor]) -> None:
    expected = 0.0
    for own, other in zip(*logits, strict=True):
        for q, p in zip(softmax(own, temperature), softmax(other, temperature), strict=True):
            expected += p * math.log(p / q) * temperature**2
    assert float(forward_kl(*logits, temperature)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_each_distribution(at_once: int, logits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are taken at once, each is what loops say of it, and what the teacher rules out adds nothing."""
    monkeypatch.setattr(divergence, "CACHED", at_once * VOCABULARY)
    own, other = logits
    other[0, 2] = -torch.inf
    targets = torch.arange(len(own)) % VOCABULARY
    divergences, losses = kl_of_each(own, other), nll_of_each(own, targets)
    for place, (mine, theirs) in enumerate(zip(own, other, strict=True)):
        pairs = list(zip(softmax(mine, 1.0), softmax(theirs, 1.0), strict=True))
        expected = sum(p * math.log(p / q) for q, p in pairs if p > 0)
        assert float(divergences[place]) == pytest.approx(expected, rel=1e-4)
        assert float(losses[place]) == pytest.approx(-math.log(pairs[int(targets[place])][0]), rel=1e-5)
    shaped = kl_of_each(own[:2].view(2, 1, -1).bfloat16(), other[:2].view(2, 1, -1).bfloat16())
    assert shaped.shape == (2, 1)
    assert shaped.dtype == torch.float32


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradient_of_forward_kl(
    temperature: float, at_once: int, logits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tokens are taken at once, it is autograd's, of plain sums over the distributions."""
    monkeypatch.setattr(divergence, "CACHED", at_once * VOCABULARY)
    own, other = (x.double() for x in logits)
    found = own.clone().requires_grad_()
    (3 * forward_kl(found, other, temperature)).backward()

    plain = own.clone().requires_grad_()
    p, q = ((x / temperature).exp() / (x / temperature).exp().sum(-1, keepdim=True) for x in (other, plain))
    (3 * temperature**2 * (p * (p / q).log()).sum()).backward()
    torch.testing.assert_close(found.grad, plain.grad, rtol=1e-10, atol=1e-12)


def test_forward_kl_of_half_precision(logits: tuple[Tensor, Tensor]) -> None:
    """Nothing but the logits and their gradient is rounded."""
    own, other = (x.bfloat16() for x in logits)
    exact = forward_kl(own.double(), other.double())
    found = forward_kl(own.requires_grad_(), other)
    assert found.item() == pytest.approx(float(exact), rel=1e-5)
    found.backward()
    assert own.grad is not None
    assert own.grad.dtype == torch.bfloat16
