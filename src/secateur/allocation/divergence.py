"""How much the model's predictions change when one site alone is cut: measured, site by site, at several levels.

One pass over the blocks for all candidates, as in `calibration.depth`: a candidate shares everything before its cut
with the untouched model. Each is cut as a run would cut it (scores, refit), on the untouched model's statistics.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.calibration.activations import Activations, MemoryBudget
from secateur.calibration.gradients import LayerGradients, hand_over
from secateur.calibration.stream import Stream, batches_of, of_sequences
from secateur.calibration.walk import Block
from secateur.model.streamed import StreamedModel
from secateur.numerics.divergence import kl_of_each
from secateur.numerics.precision import wide_dtype
from secateur.system import distributed
from secateur.system.halving import AtOnce, in_parts, of

SEQUENCES = 16  # of the calibration text


class Candidate(NamedTuple):
    """A fraction of one kind of site of one layer; the kind `weight` means all its Linears."""

    layer: int
    kind: str
    level: float


@torch.no_grad()
def divergences(
    streamed: StreamedModel,
    tokens: Tensor,
    candidates: Sequence[Candidate],
    cut: Callable[[Block, str, float], None],
    layers: Sequence[int],
    loss: frozenset[str] = frozenset(),
    gradients: LayerGradients | None = None,
    step: Callable[[str], None] = lambda text: None,
    budget: MemoryBudget | None = None,
    work: Path | None = None,
    counts: Tensor | None = None,
) -> list[float]:
    """KL(untouched || cut) in nats per token, for each candidate.

    Args:
        tokens: token ids (sequences, length).
        cut: cuts a kind of site of a block at a level, in place.
        layers: that the model has; others are left out.
        loss, gradients: what `cut` needs to know of the loss, see `calibration.gradients`.
        step: called after each layer.
        budget, work: as in `calibration.walk.walk`.
        counts: bool (sequences, length), the tokens whose predictions are compared; None = all.
    """
    budget = budget or MemoryBudget(None)
    start = Stream.start(streamed, batches_of(tokens), budget, work and work / "sensitivity.bin")
    streamed.release()
    serial = itertools.count()
    states: dict[Candidate | None, Activations] = {None: start.states}
    for index in layers:
        layer = streamed.load(index)
        here = start.with_states(states[None])
        changed = {}
        for candidate in (c for c in candidates if c.layer == index):
            block = Block(index, copy.deepcopy(layer), streamed, here)
            with torch.enable_grad():
                hand_over(block, gradients, loss)
            cut(block, candidate.kind, candidate.level)
            changed[candidate] = block.layer
        following: dict[Candidate | None, Activations] = {}
        for key in [*changed, *states]:
            source = here.states if key in changed else states[key]
            target = Activations(budget, work and work / f"sensitivity-{next(serial)}.bin")
            stream = start.with_states(source)
            module = changed[key] if key is not None and key in changed else layer
            for i in range(len(start.batches)):
                target[i] = stream.forward(module, index, i, streamed.device)
            following[key] = target
        for old in states.values():
            old.close()
        states = following
        step(f"layer {index}")
    own = None if counts is None else dict(enumerate(batches_of(counts)))
    found = compare(streamed, dict(enumerate(start.batches)), states, own)
    for old in states.values():
        old.close()
    return [found[candidate] for candidate in candidates]


def compare(
    streamed: StreamedModel,
    batches: Mapping[int, Tensor],
    states: Mapping[Candidate | None, Activations | Mapping[int, Tensor]],
    counts: Mapping[int, Tensor] | None = None,
    untouched: StreamedModel | None = None,
) -> dict[Candidate, float]:
    """KL of each final state's predictions to those of the untouched model, which has the key None.

    Args:
        batches: number -> token ids (sequences, length) of those that are compared.
        states: by these numbers, (sequences, length, hidden).
        counts: by these numbers, bool (sequences, length), the tokens whose predictions are compared; None = all.
        untouched: the model that makes predictions of the untouched states, where that is another one.
    """
    keys = [key for key in states if key is not None]
    sums = torch.zeros(len(keys) + 1, dtype=wide_dtype(streamed.device), device=streamed.device)
    room = AtOnce()

    def found(i: int, some: Sequence[int]) -> Tensor:
        """What some sequences of a batch add to the sums."""
        rows = of(some)
        ids, own, shape = batches[i][rows], torch.zeros_like(sums), batches[i].shape
        first = of_sequences(states[None][i], shape, rows)
        reference = (untouched or streamed).logits(ids, first)
        # A token is predicted at the place before it; what the last place predicts isn't there.
        whole = counts is None or reference.dim() == 2  # one prediction for a text
        unseen = None if whole or counts is None else ~predicting(counts[i][rows]).to(reference.device)
        for place, key in enumerate(keys):
            cut = streamed.logits(ids, of_sequences(states[key][i], shape, rows))
            terms = kl_of_each(cut, reference)
            terms = terms if unseen is None else terms.masked_fill(unseen, 0.0)
            own[place] = terms.sum(dtype=sums.dtype)
        own[-1] = reference[..., 0].numel() if unseen is None else (~unseen).sum()
        return own

    for i, ids in batches.items():
        for part in in_parts(partial(found, i), range(len(ids)), streamed.device, room):
            sums += part
    distributed.all_reduce([sums])
    return {key: max(float(sums[place] / sums[-1].clamp_min(1)), 0.0) for place, key in enumerate(keys)}


def predicting(counts: Tensor) -> Tensor:
    """bool (sequences, length): the places whose prediction is a token that counts."""
    return torch.cat([counts[:, 1:], torch.zeros_like(counts[:, :1])], dim=1)
