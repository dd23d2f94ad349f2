"""Every loss against a slow one in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from secateur.numerics.divergence import forward_kl
from secateur.recovery import losses
from tests.predictions import TOKENS, VOCABULARY, softmax, two_logits

N, V, K = TOKENS, VOCABULARY, 4


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    return two_logits()


def test_language_modelling(logits: tuple[Tensor, Tensor]) -> None:
    targets = torch.arange(N) % V
    expected = -sum(math.log(softmax(row, 1.0)[t]) for row, t in zip(logits[0], targets.tolist(), strict=True))
    assert float(losses.language_modelling(logits[0], targets)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_top_forward_kl(temperature: float, logits: tuple[Tensor, Tensor]) -> None:
    expected = 0.0
    for own, other in zip(*logits, strict=True):
        q, p = softmax(own, temperature), softmax(other, temperature)
        top = sorted(range(V), key=lambda i: -p[i])[:K]
        expected += sum(p[i] * math.log(p[i] / q[i]) for i in top)
        rest_p, rest_q = 1 - sum(p[i] for i in top), 1 - sum(q[i] for i in top)
        expected += rest_p * math.log(rest_p / rest_q)
    found = losses.top_forward_kl(logits[0], *losses.top_logits(logits[1], K, temperature), temperature)
    assert float(found) == pytest.approx(expected * temperature**2, rel=1e-4)
    assert float(found) <= float(forward_kl(*logits, temperature)) + 1e-6


def test_all_tokens_are_the_whole_divergence(logits: tuple[Tensor, Tensor]) -> None:
    whole = losses.top_forward_kl(logits[0], *losses.top_logits(logits[1], 10 * V))
    torch.testing.assert_close(whole, forward_kl(*logits), rtol=1e-5, atol=1e-5)


def test_top_forward_kl_leads_to_the_teacher(logits: tuple[Tensor, Tensor]) -> None:
    own = logits[0].clone().requires_grad_(True)
    top = losses.top_logits(logits[1], K)
    before = losses.top_forward_kl(own, *top).item()
    for _ in range(300):
        losses.top_forward_kl(own, *top).backward()
        assert own.grad is not None
        own.data -= 0.5 * own.grad
        own.grad = None
    assert losses.top_forward_kl(own, *top).item() < 1e-3 * before


def test_hidden_states() -> None:
    torch.manual_seed(0)
    student, teacher = (([torch.randn(2, 3, 5) for _ in range(2)]) for _ in range(2))
    counted = torch.tensor([[True, True, False], [False, True, True]])
    expected = 0.0
    for own, other in zip(student, teacher, strict=True):
        for b, t in counted.nonzero().tolist():
            s, u = own[b, t].double(), other[b, t].double()
            expected += float(((s - u) ** 2).sum() / (u**2).sum()) / 2
    assert float(losses.hidden_states(student, teacher, counted)) == pytest.approx(expected, rel=1e-5)
