"""Which layers and sub-blocks go whole: decided before the walk, by what the model loses without each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from secateur.calibration.layer_scores import ModelPart, leave_out, passes_of, scores_of_layers
from secateur.pipeline.inputs import Inputs, Services


class LayerChoice(TypedDict):
    """What the journal keeps; keys of `scores` are texts when it's read back."""

    kept: list[int]
    scores: Mapping[int, float]


class SubBlockChoice(TypedDict):
    """(layer, kind) of the sub-blocks to drop; (layer, kind, loss without it) of every one."""

    dropped: list[tuple[int, str]]
    losses: list[tuple[int, str, float]]


def choose_layers(inputs: Inputs, services: Services) -> tuple[tuple[int, ...], dict[int, float]]:
    """The layers that stay (all, those of the plan, or those that the layer method keeps), and scores of all."""
    everything = tuple(range(inputs.checkpoint.layers))
    if inputs.rules.plan is not None:
        return inputs.rules.plan.layers, {}
    if not inputs.rules.layers_to_drop:
        return everything, {}

    def compute() -> LayerChoice:
        gone, scores = _weakest_layers(inputs, services)
        return {"kept": [i for i in everything if i not in gone], "scores": scores}

    found: LayerChoice = services.store.decide("layers", compute)
    return tuple(found["kept"]), {int(i): score for i, score in found["scores"].items()}


def choose_sub_blocks(
    inputs: Inputs, services: Services, kept: tuple[int, ...]
) -> tuple[frozenset[ModelPart], dict[ModelPart, float]]:
    """Which attention and FFN sub-blocks go from the layers that stay, and the loss without each.

    Kinds are chosen one after the other, each with what went before it left out.
    """
    if inputs.rules.plan is not None:
        return inputs.rules.plan.dropped, {}
    if not any(inputs.rules.sub_blocks.values()):
        return frozenset(), {}
    found: SubBlockChoice = services.store.decide("sub-blocks", lambda: _weakest_sub_blocks(inputs, services, kept))
    dropped = frozenset((int(index), kind) for index, kind in found["dropped"])
    return dropped, {(int(index), kind): loss for index, kind, loss in found["losses"]}


def _weakest_layers(inputs: Inputs, services: Services) -> tuple[frozenset[int], dict[int, float]]:
    """The layers to drop, and the score of every layer."""
    layers, count = inputs.checkpoint.layers, inputs.rules.layers_to_drop
    allowed = [i for i in range(layers) if i not in inputs.rules.protected]
    streamed, tokens = inputs.streamed, inputs.calibration.tokens
    measure = inputs.config.method("layer").score_layers
    if measure is not None and measure != "leave_one_out":
        with services.monitor.stage("choose layers", layers) as step:
            scores = scores_of_layers(measure, streamed, tokens, step)
        return frozenset(sorted(allowed, key=lambda i: (scores[i], i))[:count]), dict(enumerate(scores))
    with services.monitor.stage("choose layers", layers * passes_of(len(allowed), count, layers)) as step:
        parts = [(i, "layer") for i in allowed]
        gone, losses = leave_out(streamed, tokens, count, parts, step, services.memory, services.scratch)
    return frozenset(i for i, _ in gone), {i: loss for (i, _), loss in losses.items()}


def _weakest_sub_blocks(inputs: Inputs, services: Services, kept: tuple[int, ...]) -> SubBlockChoice:
    """The sub-blocks to drop, and the loss without every one."""
    gone = frozenset((i, "layer") for i in range(inputs.checkpoint.layers) if i not in kept)
    chosen: frozenset[ModelPart] = frozenset()
    losses: dict[ModelPart, float] = {}
    there = [{site.kind for site in sites} for sites in inputs.checkpoint.sites]
    layers, protected = inputs.checkpoint.layers, inputs.rules.protected
    counts = {kind: count for kind, count in inputs.rules.sub_blocks.items() if count}
    allowed = {kind: [(i, kind) for i in kept if i not in protected and kind in there[i]] for kind in counts}
    passes = sum(passes_of(len(allowed[kind]), count, layers) for kind, count in counts.items())
    with services.monitor.stage("choose sub-blocks", layers * passes) as step:
        for kind, count in counts.items():
            where = (step, services.memory, services.scratch)
            found, own = leave_out(
                inputs.streamed, inputs.calibration.tokens, count, allowed[kind], *where, before=gone | chosen
            )
            chosen, losses = chosen | found, losses | own
    return {"dropped": sorted(chosen), "losses": [(*part, loss) for part, loss in losses.items()]}
