"""Merging experts: which are alike, which hidden unit of one is which of another, and which merges are worth it.

An expert is a pair of matrices: `up` (2 channels, hidden), gate rows and then up rows, and `down` (hidden, channels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Expert = tuple[Tensor, Tensor]
SWEEPS = 1000  # of swaps; a few dozen are what it takes
GAIN = 1e-6  # relative: what is gained below it is rounding


def likeness(products: Tensor) -> Tensor:
    """Cosines (experts, experts) of what experts write, from the sums of the products of their outputs.

    Args:
        products: (experts, experts), Σ_x f_i(x)·f_j(x) over the same tokens x. An expert that writes nothing is
            like no other.
    """
    norms = products.diagonal().clamp_min(0).sqrt()
    return products / (norms[:, None] * norms).clamp_min(torch.finfo(products.dtype).tiny)


def hidden_units(expert: Expert) -> Tensor:
    """(channels, 3 hidden) fp32: the gate row, the up row and the down column of each hidden unit."""
    up, down = expert
    return torch.cat([*up.float().chunk(2), down.float().T], dim=1)


def aligned(expert: Expert, to: Expert) -> Expert:
    """The same function with its hidden units in the order in which they are most like those of another expert."""
    order = assignment(hidden_units(to) @ hidden_units(expert).T)
    up, down = expert
    return torch.cat([half[order] for half in up.chunk(2)]), down[:, order]


def assignment(worth: Tensor) -> Tensor:
    """A column for each row of a square matrix, each once, so that what they are worth together is large.

    Rows and columns that like each other best are joined, round by round (all of them together are the greedy
    choice); then pairs of rows swap their columns as long as that is worth something. Exact where one matrix is a
    permutation of the other; otherwise no swap of two is left that would be better, though one of three may be.

    Args:
        worth: (n, n).

    Returns: int64 (n,).
    """
    order = _greedy(worth)
    rows = torch.arange(len(worth), device=worth.device)
    least = GAIN * float(worth.abs().max()) if len(worth) else 0.0
    for _ in range(SWEEPS):
        as_it_is = worth[rows, order]
        crossed = worth[:, order]  # what row i would have of row j's column
        gain = crossed + crossed.T - as_it_is[:, None] - as_it_is
        gain.fill_diagonal_(0)
        best, partner = gain.max(dim=1)
        # Of the swaps that everyone likes best, those that two agree on don't touch each other.
        agreed = (partner[partner] == rows) & (best > least)
        if not bool(agreed.any()):
            break
        order = torch.where(agreed, order[partner], order)
    return order


def _greedy(worth: Tensor) -> Tensor:
    left = worth.clone()
    rows = torch.arange(len(worth), device=worth.device)
    order = torch.full_like(rows, -1)
    while bool((order < 0).any()):
        liked, likes = left.argmax(dim=1), left.argmax(dim=0)  # by each row, by each column
        mutual = (likes[liked] == rows) & (order < 0)
        if not bool(mutual.any()):  # equal ones may go around in a circle
            mutual[left.argmax() // len(left)] = True
        order[mutual] = liked[mutual]
        left[mutual], left[:, liked[mutual]] = -torch.inf, -torch.inf
    return order


def merged(experts: Sequence[Expert], tokens: Sequence[float]) -> Expert:
    """The mean of aligned experts, each weighted by the tokens that it got; the first one if that's none at all."""
    total = sum(tokens)
    shares = [count / total for count in tokens] if total else [1.0, *[0.0] * (len(tokens) - 1)]
    up, down = (
        torch.stack([share * part.float() for share, part in zip(shares, parts, strict=True)]).sum(0)
        for parts in zip(*experts, strict=True)
    )
    return up.to(experts[0][0].dtype), down.to(experts[0][1].dtype)


def worthwhile(products: Tensor, gains: Tensor, owners: Sequence[int], error: float) -> Tensor:
    """Which of several changes to make, at most one of each owner's, so that the error is small and never grows.

    If r is what is missing of the output, and change c adds d_c to it, then the error of the changes S is
    |r|² - 2 Σ_c r·d_c + Σ_(c,e) d_c·d_e, with c and e in S. From no change at all, the best of all single steps (to
    make a change, to exchange it for another one of its owner, to take it back) is taken as long as there is one.

    Args:
        products: (changes, changes), d_c·d_e. gains: (changes,), r·d_c.
        owners: whose change each is. error: |r|².

    Returns: bool (changes,).
    """
    made = torch.zeros(len(gains), dtype=torch.bool, device=gains.device)
    whose = torch.tensor(list(owners), device=gains.device)
    steps = products.diagonal()
    while len(gains):
        slope = 2 * (products @ made.to(products) - gains)
        own = (whose[:, None] == whose) & made  # (changes, changes): those made already by the owner of each
        undone = torch.where(own, steps - slope - 2 * products, 0.0).sum(1)
        # A change that is made is its owner's own, so this also says what taking it back does.
        change = slope + steps + undone
        change[made] = (steps - slope)[made]
        best = int(change.argmin())
        if not float(change[best]) < -GAIN * error:
            break
        on = not bool(made[best])
        made[whose == whose[best]] = False
        made[best] = on
    return made
