"""How far a candidate's predictions are from the untouched model's, measured on a few sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateur.allocation.divergence import Candidate as Key
from secateur.allocation.divergence import compare
from secateur.allocation.job import Job
from secateur.calibration.activations import Activations, MemoryBudget
from secateur.calibration.stream import Stream, batches_of
from secateur.model.streamed import StreamedModel
from secateur.search.levels import put_together
from secateur.search.space import LAYER, Candidate
from secateur.system.memory import fits_in_memory

TOKENS = 4096  # of the calibration text that a candidate is measured on
Evaluate = Callable[[Sequence[Candidate]], list[float]]


class Against(NamedTuple):
    """What candidates of a narrower model are compared with: the untouched model, and what leaves its last layer."""

    streamed: StreamedModel
    states: Activations


@dataclass
class Trials:
    """The untouched model's hidden states before each layer, and what else measuring takes.

    Args:
        folder: the files of `search.levels`.
        start: batches, what enters the first layer, and how layers are called.
        before: layer -> what enters it in the job's model; one more for what leaves the last.
        against: None: the job's model is the untouched one.
    """

    job: Job
    folder: Path
    start: Stream
    before: list[Activations]
    against: Against | None = None
    _layers: dict[tuple[int, Candidate], nn.Module] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def of(cls, job: Job, folder: Path, scratch: Path, against: Against | None = None) -> Iterator[Trials]:
        """Runs the job's model once; its hidden states are in memory, or in `scratch` beyond the budget."""
        budget = job.budget or MemoryBudget(None)
        streamed, tokens = job.streamed, evaluated(job.tokens)
        name = "trial" if against is None else "narrow"
        start = Stream.start(streamed, batches_of(tokens), budget, scratch / f"{name}-0.bin")
        before = [start.states]
        try:
            for index in range(streamed.checkpoint.layers):
                layer, stream = streamed.load(index), start.with_states(before[-1])
                following = Activations(budget, scratch / f"{name}-{index + 1}.bin")
                before.append(following)
                with torch.no_grad():
                    for i in range(len(start.batches)):
                        following[i] = stream.forward(layer, index, i, streamed.device)
                job.step(f"layer {index}")
            yield cls(job, folder, start, before, against)
        finally:
            for states in before:
                states.close()

    def evaluate(self, candidates: Sequence[Candidate]) -> list[float]:
        """KL(untouched || candidate) in nats per token, of each."""
        return [self._divergence(candidate) for candidate in candidates]

    @torch.no_grad()
    def _divergence(self, candidate: Candidate) -> float:
        streamed, start = self.job.streamed, self.start
        counts = None if self.job.counts is None else dict(enumerate(batches_of(evaluated(self.job.counts))))
        if not candidate and self.against is None:
            return 0.0
        first = min((piece.layer for piece in candidate), default=streamed.checkpoint.layers)
        gone = {piece.layer for piece in candidate if piece.kind == LAYER}
        hidden = {i: self.before[first][i].to(streamed.device) for i in range(len(start.batches))}
        for index in range(first, streamed.checkpoint.layers):
            if index not in gone:
                layer = self._layer(index, tuple(piece for piece in candidate if piece.layer == index))
                hidden = {i: start.calls_of(i)[index](layer, hidden[i]) for i in hidden}
        own = Key(0, "candidate", 0.0)
        untouched, states = self.against or (streamed, self.before[-1])
        batches = dict(enumerate(start.batches))
        return compare(streamed, batches, {None: states, own: hidden}, counts, untouched)[own]

    def _layer(self, index: int, pieces: Candidate) -> nn.Module:
        """A layer without these pieces; those that were used last are kept where memory allows."""
        key = (index, pieces)
        layer = self._layers.pop(key, None)
        if layer is None:
            layer = put_together(self.job, self.folder, index, pieces)
        checkpoint = self.job.streamed.checkpoint
        if fits_in_memory(4 * checkpoint.parameters, bound=self.job.config.memory):
            self._layers[key] = layer
            if len(self._layers) > 3 * checkpoint.layers:
                self._layers.pop(next(iter(self._layers)))
        return layer


def evaluated(tokens: Tensor) -> Tensor:
    """Those of the calibration sequences that candidates are measured on: the first ones, about `TOKENS` tokens."""
    return tokens[: max(1, TOKENS // tokens.shape[1])]
