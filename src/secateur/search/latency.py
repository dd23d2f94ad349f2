"""Seconds that pieces save, measured here: models of random weights, cut alike in many layers, beside the whole one.

How fast a shape runs doesn't depend on what is in it. All layers that have a piece are cut by it at once, so that
what one of them saves is many times measured; of what goes whole it's every second layer, as a model must have some.
Each shape takes turns with the untouched one, and only their ratio counts: whatever else the machine does slows both.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from secateur.allocation.job import Job
from secateur.evaluation.speed import Trial, enough
from secateur.model.linears import linears_of
from secateur.model.site_kinds import SUB_BLOCKS
from secateur.pipeline.limits import Shape, filled, shape_of
from secateur.runtime.in_memory import without_zeros
from secateur.search.space import BOTH, LAYER, Candidate, Piece, Space, cut_shape
from secateur.search.zeros import Zeros

TIMES = ("latency", "prefill")  # of a decoding step at batch 1, and of a prompt
TIMED = (2, 4, 6)  # levels of a site that has more than four, and the last
OFF = 0.05  # of a limit: what a timed candidate is off by more than this is corrected


class Seconds(NamedTuple):
    """Of a model: a decoding step, and reading a prompt."""

    latency: float
    prefill: float


ALL = Seconds(1.0, 1.0)


class Timings(NamedTuple):
    """What was measured.

    Args:
        whole: the untouched model.
        saves: (kind, level) -> what one layer saves; levels between measured ones lie on a line between them.
    """

    whole: Seconds
    saves: Mapping[tuple[str, int], Seconds]

    def of_pieces(self, space: Space, about: str, factor: float = 1.0) -> dict[Piece, float]:
        """What each piece saves, times a correction."""
        place = TIMES.index(about)
        return {piece: factor * self._saved(space, piece, place) for piece in space.saves}

    def _saved(self, space: Space, piece: Piece, place: int) -> float:
        if piece.kind == BOTH:  # each of its levels is timed, and they aren't in a row
            return max(self.saves[BOTH, piece.level][place], 0.0)
        points = [(0.0, 0.0)]
        for (kind, level), seconds in sorted(self.saves.items()):
            share = _share(space, kind, level)
            if kind == piece.kind and share is not None:
                points.append((share, max(seconds[place], points[-1][1])))
        wanted = space.shares[piece]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            if wanted <= x1:
                return y0 + (y1 - y0) * (wanted - x0) / (x1 - x0)
        return points[-1][1]

    def to_json(self) -> dict[str, Any]:
        return {"whole": list(self.whole), "saves": [[*key, *value] for key, value in self.saves.items()]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Timings:
        saves = {(kind, level): Seconds(a, b) for kind, level, a, b in data["saves"]}
        return cls(Seconds(*data["whole"]), saves)


def timed(job: Job, space: Space, step: Callable[[str], None] = lambda text: None) -> Timings:
    """Times every kind at a few of its levels.

    Args:
        step: called after each shape.
    """
    whole = _Rival.of(job)
    saves = {}
    for kind, level in timed_pieces(space):
        cut = cut_alike(space, kind, level)
        ratio = whole.against(shape_for(job, cut))
        saves[kind, level] = Seconds(*((1 - r) * t / len(cut) for r, t in zip(ratio, whole.seconds, strict=True)))
        step(f"{kind} {_share(space, kind, level) or 0:.0%}")
    return Timings(whole.seconds, saves)


def without_them(job: Job, zeros: Zeros) -> Seconds:
    """Seconds of the untouched model without such zeros, as fractions of its own."""
    return _Rival.of(job).against(shape_for(job, ()), zeros, sparse_places(job, ()))


def timed_pieces(space: Space) -> list[tuple[str, int]]:
    """(kind, level) of the shapes that are timed."""
    found = []
    for kind in space.kinds:
        levels = sorted({piece.level for piece in space.saves if piece.kind == kind})
        found += [(kind, level) for level in levels if len(levels) <= 4 or level in (*TIMED, levels[-1])]
    return found


def cut_alike(space: Space, kind: str, level: int) -> Candidate:
    """Every layer's piece of a kind at a level; of what goes whole, every second one."""
    every = tuple(sorted(piece for piece in space.saves if (piece.kind, piece.level) == (kind, level)))
    return every[::2] if kind in (*SUB_BLOCKS, LAYER) and len(every) > 1 else every


def shape_for(job: Job, candidate: Candidate) -> Shape:
    """The shape that a candidate leaves."""
    checkpoint = job.streamed.checkpoint
    gone = {piece.layer for piece in candidate if piece.kind == LAYER}
    layers = [job.streamed.template(index) for index in range(checkpoint.layers)]
    for piece in (piece for piece in candidate if piece.kind != LAYER):
        cut_shape(job, layers[piece.layer], piece)
    return shape_of(checkpoint, [i for i in range(checkpoint.layers) if i not in gone], layers, {})


def sparse_places(job: Job, candidate: Candidate) -> list[int]:
    """Those of the layers that a candidate leaves, counted anew, which zeros may go into: the ones not protected."""
    gone = {piece.layer for piece in candidate if piece.kind == LAYER}
    left = [index for index in range(job.streamed.checkpoint.layers) if index not in gone]
    return [place for place, index in enumerate(left) if index not in job.rules.protected]


def time_of(job: Job, candidate: Candidate, zeros: Zeros | None = None) -> tuple[Seconds, Seconds]:
    """The untouched model's seconds and a candidate's, as it is, without its zeros where it has some."""
    whole = _Rival.of(job)
    ratio = whole.against(shape_for(job, candidate), zeros, sparse_places(job, candidate))
    return whole.seconds, Seconds(*(r * t for r, t in zip(ratio, whole.seconds, strict=True)))


class _Rival:
    """The untouched model's shape, which the others take turns with."""

    def __init__(self, job: Job, trial: Trial) -> None:
        self._job, self._trial = job, trial
        self._runs: list[tuple[float, float]] = []

    @classmethod
    def of(cls, job: Job) -> _Rival:
        found = cls(job, _trial(job, shape_for(job, ())))
        found._runs = [found._trial.run() for _ in range(3)]
        return found

    @property
    def seconds(self) -> Seconds:
        prefill, decode = (statistics.median(times) for times in zip(*self._runs, strict=True))
        return Seconds(decode / self._trial.answer, prefill)

    def against(self, shape: Shape, zeros: Zeros | None = None, places: Sequence[int] = ()) -> Seconds:
        """A shape's seconds as fractions of the untouched one's: medians over runs that took turns.

        Args:
            zeros, places: that some of its layers, by their places, run without.
        """
        other, ratios, begin = _trial(self._job, shape, zeros, places), list[Sequence[float]](), time.perf_counter()
        while not enough(len(ratios), time.perf_counter() - begin):
            (own, mine), (theirs, its) = self._trial.run(), other.run()
            self._runs.append((own, mine))
            ratios.append((its / mine, theirs / own))
        return Seconds(*(statistics.median(values) for values in zip(*ratios, strict=True)))


@torch.no_grad()
def _trial(job: Job, shape: Shape, zeros: Zeros | None = None, places: Sequence[int] = ()) -> Trial:
    model = filled(shape, job.streamed.device, job.streamed.dtype)
    if zeros is None:
        return Trial(model)
    family, names = shape.family, list[str]()
    for place, layer in enumerate(model.get_submodule(family.layers).children()):
        for linear in linears_of(layer, family) if place in places else ():
            scores = torch.rand(linear.shape)
            linear.weight = linear.weight * zeros.pattern.mask(scores, zeros.share)
            names.append(f"{family.layers}.{place}.{linear.name}")
    return Trial(without_zeros(model, names, job.streamed.checkpoint.dtype))


def _share(space: Space, kind: str, level: int) -> float | None:
    return next((s for piece, s in space.shares.items() if (piece.kind, piece.level) == (kind, level)), None)
