"""How far predictions are from a model's own, and which way is down: the forward KL of its distribution.

Source: Hinton et al. 2015 (https://arxiv.org/abs/1503.02531, sec. 2), at a temperature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Numbers of logits that are compared at once: a CPU's cache holds them; elsewhere they are worth a launch.
CACHED, LAUNCHED = 2**19, 2**26


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
        at_once = max(1, (CACHED if logits.device.type == "cpu" else LAUNCHED) // logits.shape[-1])
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
