"""sweep.json: what has become of the trials of a sweep."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict

from secateur.report.schema.compare import Comparison


class TrialOrder(TypedDict):
    """What the process of one trial is told."""

    name: str
    recipe: str
    out: str
    overwrite: bool
    threads: int | None
    trusted: bool
    cwd: str
    secateur: str


class TrialOutcome(TypedDict):
    """What it answers. `error`: one line, where it failed; `seconds`: of this attempt."""

    name: str
    error: str | None
    seconds: float


class TrialFacts(TypedDict):
    """One trial. `state` is done or failed; `ran`: in this sweep, else it was done before; `attempts`: how often it
    was begun meanwhile; `seconds`: what its run took, all stages; `result`: its folder."""

    name: str
    changes: dict[str, object]
    state: str
    ran: bool
    attempts: int
    seconds: float | None
    error: str | None
    result: str


class SweepFacts(TypedDict):
    """The whole sweep. `files`: what it has written beside the trials; `comparison`, where any trial is done."""

    secateur: str
    on: str
    trial_cpus: int | None
    trial_gpus: float
    retries: int
    trials: list[TrialFacts]
    comparison: NotRequired[Comparison]
    files: list[str]
