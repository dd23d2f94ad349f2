"""Unstructured cuts of one block: every Linear is solved for its own zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from secateur.calibration.walk import Block
from secateur.methods import Method, Solution, prune_weight
from secateur.model.linears import Linear
from secateur.numerics.least_squares import masked_least_squares
from secateur.numerics.moments import Moments
from secateur.numerics.patterns import Pattern
from secateur.numerics.support import support_of
from secateur.numerics.targets import NEEDS, Target, best_bias, relative_error, retarget
from secateur.system import distributed


@dataclass(frozen=True)
class WeightCut:
    """What was done to one Linear.

    Args:
        sparsity: fraction of its weights that are zero now.
        error: E|Wx - W'x|^2 / E|Wx|^2 over the calibration tokens, W being the weights that reach the target best;
            None for methods that need none.
        damping: what the solve's damping ended with, if it has any.
    """

    linear: str
    shape: tuple[int, int]
    sparsity: float
    error: float | None
    damping: float | None


def cut_weights(
    block: Block,
    method: Method,
    pattern: Pattern,
    sparsity: Callable[[str], float],
    sequential: bool = False,
    target: Target = "pruned",
) -> list[WeightCut]:
    """Prunes the weights of every Linear of a block, in place.

    Args:
        sparsity: Linear's name -> fraction to remove.
        sequential: within the block too, each Linear sees what the pruned ones before it produce.
        target: what each Linear is solved for, see `numerics.targets`; `residual` asks for `sequential`, or
            each of a block's writers would make up for the same drift.
    """
    cuts = []
    for stage in block.stages(method.statistics | NEEDS[target], sequential):
        ranks = distributed.owners([_work(linear) for linear, _ in stage])
        for owner, (linear, moments) in zip(ranks, stage, strict=True):
            own = owner == distributed.rank()
            cut = _cut(block, linear, moments, method, pattern, sparsity(linear.name), target) if own else None
            shared = distributed.share_object(cut, owner)
            assert shared is not None
            cuts.append(shared)
            tensors = [linear.stored] if linear.bias is None else [linear.stored, linear.bias]
            distributed.broadcast(tensors, owner)
    return cuts


def recounted(cuts: list[WeightCut], block: Block) -> list[WeightCut]:
    """The same cuts with the zeros that the block has now."""
    zeros = {linear.name: 1 - float((linear.stored != 0).float().mean()) for linear in block.linears}
    return [replace(cut, sparsity=zeros[cut.linear]) for cut in cuts]


def _work(linear: Linear) -> float:
    """What solving a Linear (out, in) costs relative to others: a factor, in³, and a sweep, out · in²."""
    out, features = linear.shape
    return float(features**2 * (features + out))


def _cut(
    block: Block,
    linear: Linear,
    moments: Moments,
    method: Method,
    pattern: Pattern,
    sparsity: float,
    target: Target,
) -> WeightCut:
    weight = linear.weight
    pattern.validate(weight.shape[1], linear.name)
    dense, dense_bias = block.original(linear, weight)
    # As published, methods leave the bias alone; for another target than their own it moves along.
    biased = linear.bias is not None and target != "pruned"
    wanted, about = retarget(weight, moments, target, dense, biased)
    slopes = {need: Linear(block.gradients[need], linear.name, linear.source).weight for need in method.loss}
    solution = prune_weight(method, wanted, about, pattern, sparsity, slopes)
    solution = _within(solution, support_of(linear.weight), wanted, about)
    linear.weight = solution.weight
    if linear.bias is not None and biased:
        shift = best_bias(solution.weight, linear.bias, moments, dense, dense_bias)
        linear.bias.add_(shift.to(linear.bias.dtype))
    zeros = 1 - float(solution.mask.float().mean())
    error = None
    if "gram" in moments.needs:
        error = relative_error(wanted, solution.weight, moments, biased)
    return WeightCut(linear.name, linear.shape, zeros, error, solution.damping)


def _within(solution: Solution, support: Tensor | None, wanted: Tensor, moments: Moments) -> Solution:
    """A solution with fewer zeros than there were before gets those back: nothing is filled in that had gone."""
    if support is None or not float(solution.mask.float().mean()) > float(support.float().mean()):
        return solution
    mask = solution.mask & support.to(solution.mask.device)
    if "gram" in moments.needs:
        weight = masked_least_squares(wanted, moments.gram, mask).weight.to(solution.weight.device)
    else:
        weight = solution.weight.where(mask, 0.0)
    return solution._replace(weight=weight, mask=mask)
