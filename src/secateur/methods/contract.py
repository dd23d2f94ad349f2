"""What a pruning method is: a tuple of pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.methods.units import Units
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import Pattern


class Solution(NamedTuple):
    """A pruned weight (out, in) fp32, zero where `mask` is False; the damping of its solve, if any."""

    weight: Tensor
    mask: Tensor
    damping: float | None = None


class Method(NamedTuple):
    """One published way to choose what goes, and perhaps to make up for it.

    Exactly one of `score` and `solve` for weights; `score_units` for structured sites; `score_layers` names
    the measurement over the whole model that ranks decoder layers (the pipeline runs it, a method can't).

    Args:
        needs: the moments that must be gathered first, see `numerics.moments.NEEDS`.
        score: (W (out, in), moments) -> importance (out, in) fp32, not negative; higher = keep.
        scope: where `score` is compared for free patterns, `row` or `matrix`.
        solve: (W (out, in), moments, pattern, sparsity) -> Solution.
        score_units: (units) -> importance (units,) fp64 on the CPU, not negative; higher = keep.
    """

    name: str
    title: str
    paper: str
    needs: frozenset[str] = frozenset()
    score: Callable[[Tensor, Moments], Tensor] | None = None
    scope: str = "row"
    solve: Callable[[Tensor, Moments, Pattern, float], Solution] | None = None
    score_units: Callable[[Units], Tensor] | None = None
    score_layers: str | None = None

    @property
    def prunes(self) -> frozenset[str]:
        """Any of `weights`, `units`, `layers`."""
        kinds = {
            "weights": self.score is not None or self.solve is not None,
            "units": self.score_units is not None,
            "layers": self.score_layers is not None,
        }
        return frozenset(kind for kind, able in kinds.items() if able)


@torch.no_grad()
def prune_weight(method: Method, W: Tensor, moments: Moments, pattern: Pattern, sparsity: float) -> Solution:
    """W (out, in) of any float dtype pruned by a method for weights: its solve, or its score and a mask."""
    if method.solve is not None:
        return method.solve(W, moments, pattern, sparsity)
    if method.score is None:
        raise ValueError(f"method {method.name} prunes {', '.join(sorted(method.prunes))}, not weights")
    mask = pattern.mask(method.score(W, moments), sparsity, method.scope)
    return Solution(W.float() * mask, mask)
