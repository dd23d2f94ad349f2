"""Block reconstruction: what is left of a block is tuned so that it outputs what the untouched model's block does.

Zeros stay zeros, or come bit by bit (`reconstruct.masks`). The inputs are those of the pruned model so far,
the targets are the outputs of the untouched model's block on the untouched model's stream, so the block also makes
up for the drift before it. One block at a time (or half of one, see `reconstruct.window`), a few hundred Adam steps
in fp32 (their products in bf16 where that is faster); sequences that it isn't tuned on decide when to stop, and if it
never gets better on them, the block stays as it was, bit by bit (compare "A free lunch in LLM compression",
https://arxiv.org/abs/2510.14444).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.calibration.activations import MemoryBudget
from secateur.calibration.loss_weights import LossWeights
from secateur.calibration.walk import Block, round_to_stored
from secateur.config.presets import Masks, Window
from secateur.reconstruct.compiled import CompiledLayer, compiles
from secateur.reconstruct.masks import Gradual, Kept, in_fp32
from secateur.reconstruct.objective import BlockObjective, objective_of
from secateur.reconstruct.sequences import SequenceBatch, in_turn, split
from secateur.reconstruct.window import parts
from secateur.system import distributed
from secateur.system.halving import halve, tried

RATE = 0.04  # where zeros are found while a block is tuned; measured on stories3M at 2:4
KEPT_RATES = 0.005, 2.56  # where they stand before it: the least, and times the hidden size
LOOK_EVERY = 25  # steps between two looks at the held-out sequences
PATIENCE = 6  # looks without gain before it stops
ZERO_SCALE = 1e-2  # for what is zero altogether and has no weight beside it to compare with


@dataclass(frozen=True)
class Tuning:
    """How a block is tuned.

    Args:
        steps: at most, one batch each.
        rate: Adam's step relative to each parameter's root mean square, so that it fits models of any scale.
        seed: of the order of the batches.
        window: what is tuned at once, and where it is judged, see `reconstruct.window`; `steps` are a window's.
        predictions: where a window ends with the model, its predictions are compared, see `reconstruct.objective`.
        compiled: steps go through `torch.compile`, see `reconstruct.compiled`.
    """

    steps: int = 400
    rate: float = RATE
    seed: int = 0
    window: Window = "block"
    predictions: bool = False
    compiled: bool = False


def rate_of(masks: Masks, hidden: int) -> float:
    """Adam's relative step. What a solver has found is near where it should be, and the wider a Linear the less each
    of its weights has to move; measured on stories260K (hidden size 64) and SmolLM2-135M (576)."""
    least, scale = KEPT_RATES
    return RATE if masks == "gradual" else min(RATE, max(least, scale / hidden))


@dataclass(frozen=True)
class Tuned:
    """Relative error before and after, on tuned and on held-out sequences, see `reconstruct.objective`; or the
    divergence of the predictions, in nats a token.

    Args:
        steps: that led there; 0 if nothing helped and the block was left as it was.
        predictions: whether it is that of the predictions.
        eager: why it wasn't compiled, where it should have been.
    """

    before: float
    after: float
    held_out_before: float
    held_out_after: float
    steps: int
    predictions: bool = False
    eager: str | None = None


def reconstruct(
    block: Block,
    tuning: Tuning,
    budget: MemoryBudget | None = None,
    masks: Kept | Gradual | None = None,
    weights: LossWeights | None = None,
) -> Tuned | None:
    """Tunes all weights, norm gains and biases of a block in place.

    Args:
        block: of a walk with `dense=True`, cut as it should be.
        budget: bytes that the block's targets may take in memory; the rest goes beside the stream's own file.
        masks: what is tuned, and what of it is zero; the block as it is cut now is what that has to beat.
            None: the block itself, whose zeros stay.
        weights: of squared errors, by what they cost the predictions; None: all alike.

    Returns: None where there is no sequence left to stop by, or the block has no parameters: nothing was done.
    """
    tuned, held = split([len(ids) for ids in block.stream.batches])
    with objective_of(block, budget or MemoryBudget(None), tuning.window, weights, tuning.predictions) as objective:
        # Both sides of the comparison as they'd be saved: what rounding takes away was never gained.
        cut = _as_saved(block, block.layer)
        before, held_before = objective.error(cut, tuned), objective.error(cut, held)
        del cut
        if before is None or held_before is None:
            return None
        masks = masks or Kept(block)
        layer = CompiledLayer(masks.layer) if tuning.compiled else masks.layer
        steps = 0
        for names in parts(masks.layer, block.streamed.checkpoint.family, tuning.window):
            masks.work_on(names)
            steps += _descend(objective, tuned, held, masks, tuning, names, layer)
        masks.finish()
        found = _as_saved(block, masks.layer)
        after, held_after = objective.error(found, tuned), objective.error(found, held)
    eager = layer.failure if isinstance(layer, CompiledLayer) else None
    if after is None or held_after is None or not held_after < held_before:
        return Tuned(before, before, held_before, held_before, 0, objective.predictions, eager)
    with torch.no_grad():
        for name, value in found.named_parameters():
            block.layer.get_parameter(name).copy_(value)
    return Tuned(before, after, held_before, held_after, steps, objective.predictions, eager)


def _descend(
    objective: BlockObjective,
    tuned: list[SequenceBatch],
    held: list[SequenceBatch],
    masks: Kept | Gradual,
    tuning: Tuning,
    names: frozenset[str],
    layer: nn.Module,
) -> int:
    """Tunes the named parameters of the layer of `masks`; leaves it with the least held-out error that was seen, and
    returns the steps that led there.

    Args:
        layer: what is called in its place to go forward and back.
    """
    masks.layer.requires_grad_(False)
    parameters = {name: p for name, p in masks.layer.named_parameters() if name in names}
    for p in parameters.values():
        p.requires_grad_(True)
    rates = {name: tuning.rate * scale for name, scale in _scales(parameters).items()}
    groups = [{"params": [p], "lr": rates[name]} for name, p in parameters.items()]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, tuning.steps))
    order = in_turn(tuned, tuning.seed + objective.block.index)
    best: dict[str, Tensor] = {}
    best_error, best_step, looks = math.inf, 0, 0
    for step in range(1, tuning.steps + 1):
        masks.advance(step / tuning.steps, objective.block)
        masks.hold()
        optimizer.zero_grad(set_to_none=True)
        part = next(order)
        if part is not None:  # a rank may have got no sequences
            _backward(objective, layer, part, list(parameters.values()))
        _share_gradients(parameters)
        optimizer.step()
        masks.hold()
        schedule.step()
        if masks.settled and (step % LOOK_EVERY == 0 or step == tuning.steps):
            error = objective.error(masks.layer, held)
            looks += 1
            if error is not None and error < best_error:
                best = {name: p.detach().clone() for name, p in parameters.items()}
                best_error, best_step, looks = error, step, 0
            if looks == PATIENCE:
                break
    with torch.no_grad():
        for name, value in best.items():
            parameters[name].copy_(value)
    return best_step


def _backward(
    objective: BlockObjective, layer: nn.Module, part: SequenceBatch, parameters: list[nn.Parameter]
) -> None:
    """Gives the parameters the gradients of one step: of all its sequences at once, or added up over some after the
    other, where memory doesn't suffice. It begins anew where that shows, or that the layer can't be compiled."""
    room = objective.block.stream.room

    def through() -> None:
        for some in part.divided(room.most):
            objective.loss(layer, some).backward()

    while (done := tried(lambda: compiles(layer, through))) != (True,):
        for p in parameters:
            p.grad = None
        if done is None:
            halve(room, min(part.size, room.most or part.size), objective.block.streamed.device)


@torch.no_grad()
def _as_saved(block: Block, layer: nn.Module) -> nn.Module:
    """A copy in fp32, rounded to what the layer computes with, and then to what is saved."""
    out = in_fp32(layer)
    for p in out.parameters():
        p.data = p.data.to(block.streamed.dtype).float()
    round_to_stored(out, block.streamed, block.index)
    return out


def _scales(parameters: dict[str, nn.Parameter]) -> dict[str, float]:
    """Root mean square of what isn't zero of each parameter; a bias that is all zero goes by its weight."""

    def scale(name: str) -> float:
        values = parameters[name].detach()
        values = values[values != 0]
        return float(values.square().mean().sqrt()) if values.numel() else 0.0

    return {
        n: scale(n) or (scale(w) if (w := _weight_beside(n)) in parameters else 0) or ZERO_SCALE for n in parameters
    }


def _weight_beside(bias: str) -> str:
    return bias.rpartition(".")[0] + ".weight"


def _cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def _share_gradients(parameters: dict[str, nn.Parameter]) -> None:
    """Every rank steps along the mean gradient; what a rank's batch didn't reach (an expert) counts as zero."""
    if distributed.world() > 1:
        for p in parameters.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            distributed.all_reduce([p.grad])
            p.grad.div_(distributed.world())
