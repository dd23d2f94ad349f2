"""What a search opens, and what it remembers: the model, its text, what may go, and every measurement so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur._version import __version__
from secateur.allocation.job import Job
from secateur.calibration.activations import MemoryBudget
from secateur.calibration.gradients import WHOLE, LayerGradients, check_gradients, gradients_of_model
from secateur.config.searching import SearchSettings
from secateur.cut.checks import check_comparable
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.hub import local_folder
from secateur.model.site_kinds import UNIT_KINDS
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.prune import prepare
from secateur.search.space import Candidate, Piece
from secateur.search.trial import Evaluate
from secateur.system import distributed
from secateur.system.monitor import Monitor
from secateur.workspace.journal import Journal

MEASURED = "measured"  # a candidate, in the journal


def opened(settings: SearchSettings, device: torch.device, monitor: Monitor) -> tuple[Inputs, frozenset[str]]:
    """The inputs of a pass over the model, and the kinds of sites that may go from it.

    Raises:
        InputError: the model has none of the kinds, or predicts nothing; or what `prune` would refuse.
    """
    if distributed.world() > 1:
        raise InputError("search runs in one process; leave out torchrun")
    checkpoint = Checkpoint.open(local_folder(settings.model))
    there = {site.kind for sites in checkpoint.sites for site in sites} | {"layer"}
    there |= {"query_head"} if "kv_group" in there else set()  # without groups they are the same
    asked = tuple(kind for kind in settings.sites if kind in there)
    if not asked:
        raise InputError(
            f"sites {', '.join(settings.sites)}: {checkpoint.config.model_type} models have none of them"
        )
    recipe = settings.recipe(asked, dict.fromkeys(asked, 0.5))
    # Layers will differ: what refuses that shall do so now.
    inputs = prepare(recipe.model_copy(update={"allocate": "sensitivity"}), None, device, monitor, cutting=False)
    check_comparable(inputs.checkpoint)
    check_gradients(inputs.streamed, inputs.rules.gradient_needs)
    return inputs, inputs.rules.unit_kinds | ({*asked} - {*UNIT_KINDS})


def fingerprint(settings: SearchSettings, inputs: Inputs) -> dict[str, object]:
    """Everything that decides what a measurement says. Wishes don't: another search may use what one has measured."""
    same = {"want", "trials", "minutes", "memory", "precision", "zeros", "export", "prompts"}
    same |= {"finalists", "recover_steps"}
    return {
        **settings.model_dump(mode="json", exclude=same),
        "calibration data": inputs.calibration.sha256,
        "checkpoint": inputs.checkpoint.digest,
        "secateur": __version__,
    }


def job_of(inputs: Inputs, monitor: Monitor, memory: MemoryBudget, work: Path) -> Job:
    """What scoring and cutting takes."""
    tokens, needs = inputs.calibration.tokens, inputs.rules.gradient_needs
    gradients: LayerGradients | None = None
    if needs & WHOLE:
        with monitor.stage("gradients", len(tokens)) as step:
            gradients = gradients_of_model(inputs.streamed, tokens, needs, step, inputs.calibration.counts)
    every = tuple(range(inputs.checkpoint.layers))
    job = Job(inputs.config, inputs.rules, inputs.streamed, tokens, every, gradients, budget=memory, work=work)
    return job._replace(counts=inputs.calibration.counts)


@dataclass(frozen=True)
class Remembered:
    """`evaluate` with a memory: what the journal has isn't measured again, and what is measured goes into it.

    Args:
        each: gives (place, divergence) of candidates, as each is measured.
    """

    each: Callable[[Sequence[Candidate]], Iterator[tuple[int, float]]]
    known: dict[Candidate, float]
    key: str
    note: Callable[[str, Any], None]

    @classmethod
    def of(
        cls, each: Callable[[Sequence[Candidate]], Iterator[tuple[int, float]]], journal: Journal, of: str = ""
    ) -> Remembered:
        """What the journal has of a model: `of` says which, where it isn't the untouched one."""
        known = {candidate_of(pieces): float(cost) for pieces, cost in journal.every(MEASURED + of)}
        return cls(each, known, MEASURED + of, journal.note)

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        new = [candidate for candidate in candidates if candidate not in self.known]
        for place, cost in self.each(new):
            self.known[new[place]] = cost
            self.note(self.key, [[list(piece) for piece in new[place]], cost])
        return [self.known[candidate] for candidate in candidates]


def one_by_one(evaluate: Evaluate) -> Callable[[Sequence[Candidate]], Iterator[tuple[int, float]]]:
    """Measures in this process, and gives each as it is done."""
    return lambda candidates: ((place, evaluate([one])[0]) for place, one in enumerate(candidates))


def beyond(evaluate: Evaluate, alone: float, candidates: Sequence[Candidate]) -> list[float]:
    """What candidates lose beyond what the model does in which they are looked for."""
    return [max(cost - alone, 0.0) for cost in evaluate(candidates)]


def candidate_of(pieces: Sequence[Sequence[Any]]) -> Candidate:
    """A candidate that the journal has."""
    return tuple(Piece(int(layer), str(kind), int(level)) for layer, kind, level in pieces)


def clock(minutes: float | None) -> Callable[[], bool]:
    """Whether so many minutes from now are over."""
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    return lambda: time.monotonic() > end
