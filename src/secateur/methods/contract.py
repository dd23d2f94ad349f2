"""What a pruning method is: a tuple of pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.methods.index import INDEX
from secateur.methods.units import ExpertUnits, Units
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import Pattern
from secateur.numerics.routing import ROUTING

# What a method may need to know of the loss, for each parameter w of a layer.
#   gradient           dL/dw of the untouched model, L the mean loss of a token
#   gradient_size      the mean over sequences of |dL_s/dw|, L_s the mean loss of a token of sequence s
#   fisher             the mean over tokens of (dl_t/dw)², l_t the loss of token t
#   input_fisher       for a Linear's W, a matrix of its shape whose column j adds up to the mean over tokens of
#                      (x_j dl_t/dx_j)², x its input; zero for everything else
#   entropy_gradient   the mean over sequences of |dH_s/dw|, H_s the mean entropy of its predictions: no labels
#   regional           the root mean square over batches of dR/dw, R the norm of the block's own output
GRADIENTS = frozenset({"gradient", "gradient_size", "fisher", "input_fisher", "entropy_gradient", "regional"})


class Solution(NamedTuple):
    """What a method for weights returns.

    Args:
        weight: the pruned weight, (out, in) fp32, +0.0 where `mask` is False.
        mask: bool (out, in), True = kept.
        damping: that its solve has used; None where nothing was solved.
    """

    weight: Tensor
    mask: Tensor
    damping: float | None = None


class Basis(NamedTuple):
    """Directions of the stream: orthonormal columns (d, d) fp64, the most important first; their importance (d,)."""

    vectors: Tensor
    scores: Tensor


class Method(NamedTuple):
    """One published way to choose what goes, and perhaps to make up for it.

    Exactly one of `score` and `solve` for weights; `score_units` for structured sites; `score_experts` for whole
    experts; `basis` for hidden dimensions; `score_layers` names the measurement over the whole model that ranks
    decoder layers (the pipeline runs it, a method can't).

    Args:
        needs: what must be gathered first: moments, see `numerics.moments.NEEDS`, any of `GRADIENTS`, and for
            experts any of `numerics.routing.ROUTING`.
        score: (W (out, in), moments) -> importance (out, in) fp32, not negative; higher = keep. Where gradients
            are needed: (W, moments, gradients), a mapping from each need to a tensor (out, in) fp32.
        scope: where `score` is compared for free patterns, `row` or `matrix`.
        solve: (W (out, in), moments, pattern, sparsity) -> Solution.
        running: unit scores are running totals, each the loss once this unit and all below it are gone.
        score_units: (units) -> importance (units,) fp64 on the CPU, not negative; higher = keep.
        score_experts: (experts) -> importance (experts,) likewise.
        basis: (E[x xᵀ] (d, d) fp64 of what the norms hand on, seed) -> Basis.
    """

    name: str
    title: str
    paper: str
    needs: frozenset[str] = frozenset()
    score: Callable[..., Tensor] | None = None
    scope: str = "row"
    solve: Callable[[Tensor, Moments, Pattern, float], Solution] | None = None
    score_units: Callable[[Units], Tensor] | None = None
    score_experts: Callable[[ExpertUnits], Tensor] | None = None
    basis: Callable[[Tensor, int], Basis] | None = None
    score_layers: str | None = None
    running: bool = False

    @classmethod
    def listed(cls, name: str, **how: Any) -> Method:
        """A method of the table: what is known of it stands there, and here only how it is done."""
        facts = INDEX[name]
        return cls(name=name, title=facts.title, paper=facts.paper, needs=facts.needs, **how)

    @property
    def loss(self) -> frozenset[str]:
        """The gradients that it needs, any of `GRADIENTS`."""
        return self.needs & GRADIENTS

    @property
    def statistics(self) -> frozenset[str]:
        """The moments that it needs, any of `numerics.moments.NEEDS`."""
        return self.needs - GRADIENTS - ROUTING

    @property
    def routing(self) -> frozenset[str]:
        """The statistics of a router that it needs, any of `ROUTING`."""
        return self.needs & ROUTING

    @property
    def prunes(self) -> frozenset[str]:
        """What it can choose among: any of `weights`, `units`, `experts`, `dimensions`, `layers`, `sub-blocks`."""
        kinds = {
            "weights": self.score is not None or self.solve is not None,
            "units": self.score_units is not None,
            "experts": self.score_experts is not None,
            "dimensions": self.basis is not None,
            "layers": self.score_layers is not None,
            "sub-blocks": self.score_layers == "leave_one_out",  # the others look at what leaves a layer
        }
        return frozenset(kind for kind, able in kinds.items() if able)


@torch.no_grad()
def prune_weight(
    method: Method,
    W: Tensor,
    moments: Moments,
    pattern: Pattern,
    sparsity: float,
    gradients: Mapping[str, Tensor] | None = None,
) -> Solution:
    """W (out, in) of any float dtype pruned by a method for weights: its solve, or its score and a mask.

    Args:
        gradients: those that the method needs, each (out, in).
    """
    if method.solve is not None:
        return method.solve(W, moments, pattern, sparsity)
    if method.score is None:
        raise ValueError(f"method {method.name} prunes {', '.join(sorted(method.prunes))}, not weights")
    scores = method.score(W, moments, gradients or {}) if method.loss else method.score(W, moments)
    mask = pattern.mask(scores, sparsity, method.scope)
    return Solution(torch.where(mask, W.float(), 0), mask)  # a product would leave half of the zeros negative
