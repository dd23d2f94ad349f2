"""How far a candidate's predictions are from the untouched model's, measured on a few sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateur.allocation.divergence import Candidate as Key
from secateur.allocation.divergence import compare, predicting
from secateur.allocation.job import Job
from secateur.calibration.activations import Activations, MemoryBudget
from secateur.calibration.stream import Stream, batches_of, first_of
from secateur.model.heads import predicts_texts
from secateur.model.streamed import StreamedModel
from secateur.search.levels import put_together
from secateur.search.space import LAYER, Candidate
from secateur.system.memory import fits_in_memory

TOKENS = 4096  # of the calibration text that a candidate is measured on
# Of these, for a piece alone: all pieces are measured on the same ones, and their order is what counts.
FEW = 1024
ENOUGH = 128  # predictions that such an order takes
Finish = Callable[[nn.Module, int, Stream], None]
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
        finish: what is done to each layer, in place, given its place and what enters it of some batches.
        beside: so many batches, the first, are for that alone; nothing is measured on them.
        few: so many batches after those are what pieces alone are measured on.
    """

    job: Job
    folder: Path
    start: Stream
    before: list[Activations]
    against: Against | None = None
    finish: Finish | None = None
    beside: int = 0
    few: int = 1
    _layers: dict[tuple[int, Candidate], nn.Module] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def of(
        cls, job: Job, folder: Path, scratch: Path, against: Against | None = None, finish: Finish | None = None
    ) -> Iterator[Trials]:
        """Runs the job's model once; its hidden states are in memory, or in `scratch` beyond the budget."""
        assert finish is None or against is not None, "the untouched states have no other batches"
        budget, streamed = job.budget or MemoryBudget(None), job.streamed
        beside = [] if finish is None else batches_of(fitted_on(job.tokens))
        batches = [*beside, *_batches(job.tokens)]
        name = "trial" if against is None else "narrow"
        start = Stream.start(streamed, batches, budget, scratch / f"{name}-0.bin")
        before = [start.states]
        trials = cls(job, folder, start, before, against, finish, len(beside), few_of(job))
        try:
            for index in range(streamed.checkpoint.layers):
                layer, stream = trials.finished(streamed.load(index), index), start.with_states(before[-1])
                following = Activations(budget, scratch / f"{name}-{index + 1}.bin")
                before.append(following)
                with torch.no_grad():
                    for i in range(len(start.batches)):
                        following[i] = stream.forward(layer, index, i, streamed.device)
                job.step(f"layer {index}")
            yield trials
        finally:
            for states in before:
                states.close()

    def evaluate(self, candidates: Sequence[Candidate]) -> list[float]:
        """KL(untouched || candidate) in nats per token, of each."""
        return [self._divergence(candidate, len(self.start.batches)) for candidate in candidates]

    def roughly(self, candidates: Sequence[Candidate]) -> list[float]:
        """The same on the first few of the sequences."""
        return [self._divergence(candidate, self.beside + self.few) for candidate in candidates]

    @torch.no_grad()
    def _divergence(self, candidate: Candidate, end: int) -> float:
        """On the batches before number `end`."""
        streamed, start = self.job.streamed, self.start
        counts = None if self.job.counts is None else dict(enumerate(_batches(self.job.counts)))
        if not candidate and self.against is None:
            return 0.0
        first = min((piece.layer for piece in candidate), default=streamed.checkpoint.layers)
        gone = {piece.layer for piece in candidate if piece.kind == LAYER}
        batches = dict(enumerate(start.batches[self.beside : end], self.beside))
        hidden = {i: self.before[first][i].to(streamed.device) for i in batches}
        for index in range(first, streamed.checkpoint.layers):
            if index not in gone:
                layer = self._layer(index, tuple(piece for piece in candidate if piece.layer == index))
                hidden = {i: start.calls_of(i)[index](layer, hidden[i]) for i in hidden}
        own = Key(0, "candidate", 0.0)
        untouched, states = self.against or (streamed, self.before[-1])
        ids = {i - self.beside: some for i, some in batches.items()}
        cut = {i - self.beside: some for i, some in hidden.items()}
        return compare(streamed, ids, {None: states, own: cut}, counts, untouched)[own]

    def finished(self, layer: nn.Module, index: int) -> nn.Module:
        """A layer as candidates have it: what enters it is that of the model with nothing gone."""
        if self.finish is not None:
            entering = replace(self.start, batches=self.start.batches[: self.beside], states=self.before[index])
            self.finish(layer, index, entering)
        return layer

    def _layer(self, index: int, pieces: Candidate) -> nn.Module:
        """A layer without these pieces; those that were used last are kept where memory allows."""
        key = (index, pieces)
        layer = self._layers.pop(key, None)
        if layer is None:
            layer = self.finished(put_together(self.job, self.folder, index, pieces), index)
        checkpoint = self.job.streamed.checkpoint
        if fits_in_memory(4 * checkpoint.parameters, bound=self.job.config.memory):
            self._layers[key] = layer
            if len(self._layers) > 3 * checkpoint.layers:
                self._layers.pop(next(iter(self._layers)))
        return layer


def evaluated(tokens: Tensor) -> Tensor:
    """Those of the calibration sequences that candidates are measured on: the first ones, about `TOKENS` tokens."""
    return first_of(tokens, TOKENS)


def few_of(job: Job) -> int:
    """How many batches pieces alone are measured on: the first, or all where that one has few predictions."""
    batches = _batches(job.tokens if job.counts is None else job.counts)
    counted = batches[0].numel() if job.counts is None else int(predicting(batches[0]).sum())
    alone = not predicts_texts(job.streamed.checkpoint.whole_config) and counted >= ENOUGH
    return 1 if alone else len(batches)


def _batches(tokens: Tensor) -> list[Tensor]:
    """The sequences that are measured on; the first batch is the few that pieces alone are measured on."""
    whole = evaluated(tokens)
    count = len(first_of(whole, FEW))
    return [whole[:count], *(batches_of(whole[count:]) if count < len(whole) else [])]


def fitted_on(tokens: Tensor) -> Tensor:
    """Sequences that candidates aren't measured on, twice as many; where there aren't even as many, all of them."""
    count = len(evaluated(tokens))
    others = tokens[count : 3 * count]
    return others if len(others) >= count else tokens
