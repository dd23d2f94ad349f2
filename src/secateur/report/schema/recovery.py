"""The section `recovery` of report.json, and the forecast of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired

from typing_extensions import TypedDict

from secateur.report.schema.agreement import AgreementFigures


class RateTried(TypedDict):
    """A short run with one learning rate."""

    learning_rate: float
    held_out: float | None


class TrainingForecast(TypedDict):
    """What a training was expected to cost."""

    tokens: int
    flops: int
    memory_bytes: int | None
    seconds_per_step: float
    seconds: float


class CurvePoint(TypedDict):
    """The training's loss, or the held-out loss, at a step."""

    step: int
    loss: NotRequired[float | None]
    held_out: NotRequired[float | None]


class ModelState(TypedDict):
    """The original, the pruned or the recovered model on the same text."""

    state: str
    perplexity: float
    bits_per_byte: float | None
    sets: dict[str, float]


class Teacher(TypedDict):
    """The dense model that a recovery learnt from."""

    path: str
    digest: str
    dtype: str


class RecoveryFacts(TypedDict):
    """The training after pruning."""

    how: str
    loss: dict[str, float]
    settings: Mapping[str, object]
    teacher: Teacher | None
    layer_map: list[list[int]]
    data: str
    data_sha256: str
    sequences_sha256: str
    sequences: int
    steps: int
    tokens: int
    trained_parameters: int
    optimizer: str
    learning_rate: float | None
    rates_tried: list[RateTried]
    held_out_before: float | None
    held_out_after: float | None
    best_step: int
    kept_start: bool
    masked_matrices: int
    zeros_kept: int
    merged: bool
    forecast: TrainingForecast | None
    seconds: float
    curve: list[CurvePoint]
    states: NotRequired[list[ModelState]]
    agreement: NotRequired[dict[str, dict[str, AgreementFigures]]]


class RecoveryForecast(TypedDict):
    """`recover --dry-run --json`."""

    dry_run: bool
    forecast: TrainingForecast
