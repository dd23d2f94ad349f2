"""Block reconstruction: what is left of a block is tuned so that it outputs what the untouched model's block does.

Zeros stay zeros. The inputs are those of the pruned model so far, the targets are the outputs of the untouched
model's block on the untouched model's stream, so the block also makes up for the drift before it. One block at a
time, a few hundred Adam steps; sequences that it isn't tuned on decide when to stop, and if it never gets better on
them, the block stays as it was (compare "A free lunch in LLM compression", https://arxiv.org/abs/2510.14444).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur import distributed
from secateur.calibration.activations import Activations, Budget
from secateur.calibration.walk import Block
from secateur.model.linears import linears_of
from secateur.numerics.linalg import wide_dtype

HELD_OUT = 8  # one batch in this many is kept for stopping
LOOK_EVERY = 25  # steps between two looks at the held-out batches
PATIENCE = 6  # looks without gain before it stops


@dataclass(frozen=True)
class Tuning:
    """How a block is tuned.

    Args:
        steps: at most, one batch each.
        rate: Adam's step relative to each parameter's root mean square, so that it fits models of any scale.
        seed: of the order of the batches.
    """

    steps: int = 400
    rate: float = 0.02
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """Relative error E|out - target|^2 / E|target|^2 before and after, on tuned and on held-out sequences.

    Args:
        steps: taken; 0 if nothing helped and the block was left as it was.
    """

    before: float
    after: float
    held_out_before: float
    held_out_after: float
    steps: int


def reconstruct(block: Block, tuning: Tuning, budget: Budget | None = None) -> Outcome:
    """Tunes all weights, norm gains and biases of a block in place; weights that are zero stay zero."""
    assert block.dense is not None, "reconstruction asks for walk(..., dense=True)"
    targets = _targets(block, budget or Budget(None))
    tuned, held = _split(len(block.stream.batches))
    parameters = dict(block.layer.named_parameters())
    alive = _alive(block)
    optimizer = torch.optim.Adam(
        [{"params": [p], "lr": tuning.rate * _scale(p)} for p in parameters.values()], betas=(0.9, 0.95)
    )
    shape = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, tuning.steps))
    order = torch.Generator().manual_seed(tuning.seed + block.index)
    start = _error(block, targets, tuned), _error(block, targets, held)
    best, best_error, best_step, looks = _copy(parameters), start[1], 0, 0
    block.layer.requires_grad_(True)
    for step in range(1, tuning.steps + 1):
        optimizer.zero_grad(set_to_none=True)
        if tuned:  # a rank may have got no sequences
            batch = tuned[int(torch.randint(len(tuned), (1,), generator=order))]
            _loss(block, targets, batch).backward()
        _share_gradients(parameters)
        for name, mask in alive.items():
            grad = parameters[name].grad
            if grad is not None:
                grad.mul_(mask)
        optimizer.step()
        shape.step()
        if step % LOOK_EVERY == 0 or step == tuning.steps:
            error = _error(block, targets, held)
            looks = 0 if error < best_error else looks + 1
            if error < best_error:
                best, best_error, best_step = _copy(parameters), error, step
            if looks == PATIENCE:
                break
    block.layer.requires_grad_(False)
    with torch.no_grad():
        for name, value in best.items():
            parameters[name].copy_(value)
    after = _error(block, targets, tuned) if best_step else start[0]
    targets.close()
    return Outcome(start[0], after, start[1], best_error, best_step)


def _targets(block: Block, budget: Budget) -> Activations:
    """What the untouched block outputs on the untouched stream."""
    assert block.dense is not None
    layer, stream = block.dense
    targets = Activations(budget, stream.states.beside("targets"))
    with torch.no_grad():
        for i in range(len(stream.batches)):
            targets[i] = stream.forward(layer, block.index, i, block.outer.device)
    return targets


def _split(count: int) -> tuple[list[int], list[int]]:
    """Batches to tune on and batches to stop by; with a single batch they're the same."""
    if not count:
        return [], []
    held = list(range(HELD_OUT - 1, count, HELD_OUT)) or [count - 1]
    return [i for i in range(count) if i not in held] or held, held


def _alive(block: Block) -> dict[str, Tensor]:
    """Parameter -> where it isn't zero, for the prunable matrices."""
    alive = {}
    for linear in linears_of(block.layer, block.outer.checkpoint.family):
        name = linear.parameter_name
        parameter = block.layer.get_parameter(name)
        alive[name] = parameter.detach() != 0
    return alive


def _scale(parameter: nn.Parameter) -> float:
    """Root mean square of what isn't zero; a bias that is all zero gets a small one."""
    values = parameter.detach()[parameter.detach() != 0]
    return float(values.float().square().mean().sqrt()) if values.numel() else 1e-2


def _cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def _forward(block: Block, batch: int) -> Tensor:
    device = block.outer.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return block.stream.forward(block.layer, block.index, batch, device)


def _loss(block: Block, targets: Activations, batch: int) -> Tensor:
    target = targets[batch].to(block.outer.device).float()
    return (_forward(block, batch).float() - target).square().mean() / target.square().mean()


@torch.no_grad()
def _error(block: Block, targets: Activations, batches: list[int]) -> float:
    sums = torch.zeros(2, dtype=wide_dtype(block.outer.device), device=block.outer.device)
    for batch in batches:
        target = targets[batch].to(block.outer.device).float()
        sums[0] += (_forward(block, batch).float() - target).square().sum()
        sums[1] += target.square().sum()
    distributed.all_reduce([sums])
    return float(sums[0] / sums[1]) if float(sums[1]) else 0.0


def _share_gradients(parameters: dict[str, nn.Parameter]) -> None:
    """Every rank steps along the mean gradient; what a rank's batch didn't reach (an expert) counts as zero."""
    if distributed.world() > 1:
        for p in parameters.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            distributed.all_reduce([p.grad])
            p.grad.div_(distributed.world())


def _copy(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}
