"""How far predictions are from a model's own, and which way is down: the forward KL of its distribution.

Source: Hinton et al. 2015 (https://arxiv.org/abs/1503.02531, sec. 2), at a temperature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Numbers of logits that are compared at once: a CPU's cache holds them; elsewhere they are worth a launch.
CACHED, LAUNCHED = 2**19, 2**26


def rows_at_once(logits: Tensor) -> int:
    """How many rows of logits (..., vocabulary) are worth comparing at once."""
    return max(1, (CACHED if logits.device.type == "cpu" else LAUNCHED) // logits.shape[-1])


@torch.no_grad()
def kl_of_each(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || logits) of each distribution, in nats, (...) fp32 or wider.

    What the teacher rules out (some models mask padding rows of their head) adds nothing, in the limit.

    Args:
        logits, teacher: (..., vocabulary).
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    rows, others = logits.flatten(0, -2), teacher.to(logits.device).flatten(0, -2)
    found = torch.empty(len(rows), dtype=exact, device=logits.device)
    at_once = rows_at_once(logits)
    for own, other, out in zip(*(x.split(at_once) for x in (rows, others, found)), strict=True):
        log_p = other.to(exact).log_softmax(-1)
        terms = log_p.exp() * (log_p - own.to(exact).log_softmax(-1))
        out.copy_(terms.masked_fill_(log_p == -torch.inf, 0.0).sum(-1))
    return found.view(logits.shape[:-1])


@torch.no_grad()
def nll_of_each(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target, in nats, (...) fp32 or wider.

    Args:
        logits: (..., vocabulary), of which `targets` (...) are places.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    rows, wanted = logits.flatten(0, -2), targets.to(logits.device).flatten()
    found = torch.empty(len(rows), dtype=exact, device=logits.device)
    at_once = rows_at_once(logits)
    for own, target, out in zip(*(x.split(at_once) for x in (rows, wanted, found)), strict=True):
        wide = own.to(exact)
        out.copy_(wide.logsumexp(-1) - wide.gather(1, target[:, None])[:, 0])
    return found.view(logits.shape[:-1])


def forward_kl(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum of KL(teacher || student) of the softened distributions, times the squared temperature.

    Args:
        logits, teacher: (n, vocabulary). No gradient goes to the teacher.
    """
    found: Tensor = _ForwardKL.apply(logits, teacher, temperature)
    return found


class _ForwardKL(torch.autograd.Function):
    """A few tokens at a time, and their gradient, T (q - p), at once: nothing else as wide as the vocabulary is kept.

    Autograd would keep five such tensors in fp32, which are most of a step's memory where the vocabulary is large.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        exact = torch.promote_types(logits.dtype, torch.float32)
        slope = torch.empty_like(logits)
        total = torch.zeros((), dtype=exact, device=logits.device)
        at_once = rows_at_once(logits)
        for own, other, out in zip(*(x.split(at_once) for x in (logits, teacher, slope)), strict=True):
            log_q = (own.to(exact) / temperature).log_softmax(-1)
            log_p = (other.to(exact) / temperature).log_softmax(-1)
            p = log_p.exp()
            total += torch.dot(p.flatten(), log_p.sub_(log_q).flatten())
            out.copy_(log_q.exp_().sub_(p).mul_(temperature))
        ctx.save_for_backward(slope)
        return total * temperature**2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient.to(slope.dtype), None, None
