"""What a recovery minimises, with `numerics.divergence`: sums over predicted tokens, so that parts of a batch add up.

The caller divides by the number of tokens of the whole batch, which makes the gradient the same however the
batch is split over processes and passes.

Sources: distillation at a temperature, Hinton et al. 2015 (https://arxiv.org/abs/1503.02531, sec. 2); hidden states
layer by layer, Jiao et al. 2020 (https://arxiv.org/abs/1909.10351, eq. 8), here relative to the size of the teacher's
state, so that layers of different scale count alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # label of a token that isn't learned: a prompt, padding


def language_modelling(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the negative log-likelihood, nats.

    Args:
        logits: (n, vocabulary).
        targets: token ids (n,).
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def top_logits(teacher: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The k largest log-probabilities (n, k) of the softened distribution, and their token ids (n, k)."""
    found = (teacher.float() / temperature).log_softmax(-1).topk(min(k, teacher.shape[-1]), dim=-1)
    return found.values, found.indices


def top_forward_kl(logits: Tensor, log_p: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum of KL(teacher || student) over k tokens and all others as one, times the squared temperature.

    Merging tokens never raises a divergence, so this is a lower bound of `forward_kl`, and equals it where k is the
    whole vocabulary.

    Args:
        logits: (n, vocabulary).
        log_p, ids: what `top_logits` gives, (n, k).
    """
    log_q = (logits.float() / temperature).log_softmax(-1).gather(-1, ids.long())
    p = log_p.exp()
    kl = (p * (log_p - log_q)).sum()
    if ids.shape[-1] < logits.shape[-1]:
        rest_p, rest_q = (1 - p.sum(-1)).clamp_min(0.0), (1 - log_q.exp().sum(-1)).clamp_min(1e-9)
        kl = kl + (rest_p * (rest_p.clamp_min(1e-9).log() - rest_q.log())).sum()
    return kl * temperature**2


def cosine_distance(own: Tensor, other: Tensor) -> Tensor:
    """Sum of one minus the cosine of embeddings (n, hidden), as sentence encoders are compared when they are used."""
    return (1 - F.cosine_similarity(own.float(), other.float(), dim=-1)).sum()


def hidden_states(student: Sequence[Tensor], teacher: Sequence[Tensor], counted: Tensor) -> Tensor:
    """Sum over the counted tokens of |s - t|^2 / |t|^2, the mean over the layers.

    Args:
        student, teacher: for each pair of layers (batch, tokens, hidden).
        counted: bool (batch, tokens).
    """
    total = torch.zeros((), device=counted.device)
    for own, other in zip(student, teacher, strict=True):
        own, other = own[counted].float(), other[counted].float()
        size = other.square().sum(-1).clamp_min(1e-12)
        total = total + ((own - other).square().sum(-1) / size).sum()
    return total / len(student)
