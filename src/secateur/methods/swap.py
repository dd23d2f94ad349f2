"""ALPS, then swaps: local search on the mask (the combinatorial step of Hazimeh & Mazumder 2020,
https://arxiv.org/abs/1803.01454, section 3, here for many rows on one quadratic).

Of f(V) = (V - W) G (V - W)ᵀ for one row with support S and c = (W - V) G, taking p out of S and putting q in with
its best value changes f by

    2 V_p c_p + V_p² G_pp - (c_q + V_p G_pq)² / G_qq

exactly, all else standing still. Each row makes its best such swap as long as that is below zero, all rows at
once; a few rounds of swaps and least squares by conjugate gradients alternate. No step ever raises f. Rows keep
their counts, N:M swaps inside its groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods import alps
from secateur.methods.contract import Method, Solution
from secateur.numerics.conjugate import masked_conjugate
from secateur.numerics.linalg import damped, live_inputs
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import Pattern

ROUNDS = 4
SWAPS = 32  # a row and a round, at most
CANDIDATES = 32  # the cheapest to take out and the best to put in, of which all pairs are tried
CHUNK = 2**24  # pairs held at once
LEAST = 1e-6  # of what masking the whole row costs: smaller gains are rounding


@torch.no_grad()
def solve(W: Tensor, moments: Moments, pattern: Pattern, sparsity: float) -> Solution:
    """W (out, in) pruned to the pattern; fp32. Needs the Gram matrix of the inputs.

    Raises InputError where N:M does not divide `in`.
    """
    found = alps.solve(W, moments, pattern, sparsity)
    if bool(found.mask.all()) or not bool(found.mask.any()):
        return found
    gram = moments.gram.to(W.device)
    live = live_inputs(gram)
    G = moments.once(f"swap {W.device}", lambda: damped(gram, alps.DAMPING, torch.float32))
    rows = max(1, CHUNK // (CANDIDATES**2 + W.shape[1] * (pattern.of or 1)))
    # What reads only zeros has nothing to gain: it never comes in for something else.
    parts = zip((W * live).float().split(rows), found.weight.split(rows), found.mask.split(rows), strict=True)
    done = [improve(w, v * live, G, mask, pattern) for w, v, mask in parts]
    mask = torch.cat([m for _, m in done])
    weight = torch.where(live, torch.cat([v for v, _ in done]), torch.where(mask, W.float(), 0))
    return Solution(weight, mask, found.damping)


def improve(W: Tensor, V: Tensor, G: Tensor, mask: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """(weights, mask) no worse than V (rows, in) with its mask: rounds of swaps and least squares.

    Args:
        W: (rows, in) the weights without zeros. G: positive definite (in, in).
    """
    least = LEAST * ((W @ G) * W).sum(1)
    for _ in range(ROUNDS):
        V, new = swap(W, V, G, mask, pattern, least)
        if bool((new == mask).all()):
            break
        mask = new
        V = masked_conjugate(W, G, mask, V)
    return V, mask


def swap(W: Tensor, V: Tensor, G: Tensor, mask: Tensor, pattern: Pattern, least: Tensor) -> tuple[Tensor, Tensor]:
    """One round: up to `SWAPS` best swaps in every row. `least` (rows,): what a swap must gain."""
    V, mask = V.clone(), mask.clone()
    c = (W - V) @ G
    diagonal = G.diagonal()
    pairs = _pairs_free if pattern.free else _pairs_grouped
    for _ in range(SWAPS):
        change, p, q = pairs(V, c, G, mask, pattern)
        better = change < -least
        if not bool(better.any()):
            break
        row, p, q = better.nonzero().flatten(), p[better], q[better]
        gone = V[row, p]
        c[row] += gone[:, None] * G[p]
        value = c[row, q] / diagonal[q]
        c[row] -= value[:, None] * G[q]
        V[row, p], V[row, q] = 0.0, value
        mask[row, p], mask[row, q] = False, True
    return V, mask


def _cost(V: Tensor, c: Tensor, diagonal: Tensor) -> Tensor:
    """What taking an entry out costs."""
    return 2 * V * c + V.square() * diagonal


def _pairs_free(V: Tensor, c: Tensor, G: Tensor, mask: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
    """(change of f, p, q), each (rows,), of the best pair among the candidates of each row."""
    diagonal = G.diagonal()
    count = min(CANDIDATES, V.shape[1])
    cost, p = _cost(V, c, diagonal).masked_fill(~mask, torch.inf).topk(count, largest=False)
    gain, q = (c.square() / diagonal).masked_fill(mask, -torch.inf).topk(count)
    new = c.gather(1, q)[:, None, :] + V.gather(1, p)[:, :, None] * G[p[:, :, None], q[:, None, :]]
    change = cost[:, :, None] - new.square() / diagonal[q][:, None, :]
    change = change.masked_fill(~(cost.isfinite()[:, :, None] & gain.isfinite()[:, None, :]), torch.inf)
    best, where = change.flatten(1).min(1)
    return best, p.gather(1, (where // count)[:, None])[:, 0], q.gather(1, (where % count)[:, None])[:, 0]


def _pairs_grouped(V: Tensor, c: Tensor, G: Tensor, mask: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
    """The same with p and q in one group of N:M, over all groups."""
    size, diagonal = pattern.of, G.diagonal()
    assert size is not None
    rows, width = V.shape
    inside = torch.stack([G[i : i + size, i : i + size] for i in range(0, width, size)])
    v, here = V.view(rows, -1, size), mask.view(rows, -1, size)
    new = c.view(rows, -1, 1, size) + v[..., :, None] * inside
    change = _cost(V, c, diagonal).view(rows, -1, size, 1) - new.square() / diagonal.view(-1, 1, size)
    change = change.masked_fill(~(here[..., :, None] & ~here[..., None, :]), torch.inf)
    best, where = change.flatten(1).min(1)
    first = where // size**2 * size
    return best, first + where % size**2 // size, first + where % size


METHOD = Method.listed("swap", solve=solve)
