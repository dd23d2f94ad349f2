"""Pairs of units that know the same (after https://arxiv.org/abs/2406.00030): of two with much mutual information,
one goes. No labels, no weights, no retraining.

A reconstruction: the paper's full text was not at hand, only its abstract and summaries. Stated here: I(z_k; z_l) by
the matrix-based Rényi estimator at α = 2 on a sample of tokens, kernel widths by Silverman's rule, less what is
found between shuffled tokens. Going through the pairs from the most to the least information, of two units that are
both still there one goes: the one that shares more with all the others. A unit's score is its place in that order.

Deviations, as far as known: a count instead of a threshold (the same ranking, cut where the sparsity says); one
deterministic choice instead of the best of several random ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Method
from secateur.methods.units import Units
from secateur.numerics.information import pairwise_renyi

TOKENS = 512  # the work grows with their square; fewer would leave little but bias


@torch.no_grad()
def score_units(units: Units) -> Tensor:
    """(units,) fp64: 1 for the unit that goes first, `units.count` for the last one."""
    count = units.count
    sample = units.moments.sample
    rows = sample[:: max(len(sample) // TOKENS, 1)].view(-1, count, units.width).to(units.consumer.device)
    if not len(rows):
        return torch.ones(count, dtype=torch.float64)
    raw, bias = pairwise_renyi(rows)
    shared = (raw - bias).clamp_min(0).fill_diagonal_(0).cpu()
    return order_to_scores(removal_order(shared))


def removal_order(shared: Tensor) -> list[int]:
    """Units in the order in which they go, from what each pair shares, (units, units) with an empty diagonal."""
    count = len(shared)
    total, left = shared.sum(1), shared.clone().fill_diagonal_(-1)
    best, partner = left.max(1)
    order: list[int] = []
    while len(order) < count - 1:
        k = int(best.argmax())
        other = int(partner[k])
        goes = k if float(total[k]) > float(total[other]) else other
        order.append(goes)
        left[:, goes], best[goes] = -1, -torch.inf
        stale = ((partner == goes) & (best > -torch.inf)).nonzero().flatten()
        best[stale], partner[stale] = left[stale].max(1)
    return [*order, *sorted(set(range(count)) - set(order))]


def order_to_scores(order: list[int]) -> Tensor:
    """Places in the order, from 1."""
    scores = torch.empty(len(order), dtype=torch.float64)
    scores[order] = torch.arange(1, len(order) + 1, dtype=torch.float64)
    return scores


METHOD = Method.listed("mi_pairs", score_units=score_units)
