"""The types of report.json, section by section. docs/schema/report.v1.json is made from them.

Keys that are `NotRequired` are there only where they mean something; what wasn't measured is None.
"""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict

VERSION = 1  # of the format; a key that changes its meaning, or goes, raises it


class ModelFacts(TypedDict):
    """The model that was cut."""

    path: str
    digest: str
    architecture: str
    model_type: str
    dtype: str
    layers: int


class CalibrationFacts(TypedDict):
    """The calibration text: where from, and the hashes of the source and of the tokens drawn from it."""

    source: str
    data_sha256: str
    tokens_sha256: str
    samples: int
    length: int
    seed: int
    tokens: int


class MergedExpert(TypedDict):
    """What became of an expert that went: `into` is the one most like it that stays."""

    unit: int
    into: int
    likeness: float
    taken: bool


class SiteFacts(TypedDict):
    """One site that was cut, or a layer that was weighed."""

    name: str
    kind: str
    layer: int | None
    linear: NotRequired[str]
    units: int
    kept: int
    sparsity: float
    parameters_removed: int
    weights_zeroed: NotRequired[int]
    method: str
    pattern: NotRequired[str]
    error_before_refit: NotRequired[float | None]
    error_after_refit: NotRequired[float | None]
    damping: NotRequired[float | None]
    score: NotRequired[float | None]
    scores: NotRequired[list[float] | None]
    energies: NotRequired[dict[str, float]]
    merged: NotRequired[list[MergedExpert] | None]


class AllocationFacts(TypedDict):
    """How sparsity was spread over layers."""

    how: str
    shares: dict[str, float]


class TunedBlock(TypedDict):
    """One block's reconstruction: relative errors, on the sequences tuned on and on those held out."""

    layer: int
    before: float
    after: float
    held_out_before: float
    held_out_after: float
    steps: int
    predictions: bool


class SparsityFacts(TypedDict):
    """What was asked for, and the fraction of all parameters and of Linear weights that is gone or zero."""

    requested: float | dict[str, float] | None
    parameters: float
    linear_weights: float


class ParameterCounts(TypedDict):
    """Parameters of both models: as stored, and those that aren't zero."""

    before: int
    after: int
    nonzero_before: int
    nonzero_after: int


class ResultFacts(TypedDict):
    """How the result loads."""

    loader: str
    architecture: str
    uniform: bool


class GateFacts(TypedDict):
    """What the round-trip check found; differences are relative to the largest logit."""

    how: str
    max_logit_difference: float
    max_cache_difference: float
    cache_equals_no_cache: bool
    tolerance: float
    seconds: float


class ForecastFacts(TypedDict):
    """What the checkpoint of a dry run would be."""

    parameters: int
    bytes_on_disk: int
    zeros_in_matrices: float


class StageFacts(TypedDict):
    """One stage of the run; `cpu_seconds` are of all threads."""

    name: str
    seconds: float
    peak_memory_bytes: int | None
    cpu_seconds: float


class DeviceFacts(TypedDict):
    """Where the run computed."""

    device: str
    name: str
    threads: int
    dtype: str


class GradualStep(TypedDict):
    """One step of a gradual run; step 0 is the original model."""

    step: int
    share: float
    parameters: int
    nonzero_parameters: int
    perplexity: dict[str, float]


class Sample(TypedDict):
    """An opening, and how the models go on from it."""

    prompt: str
    before: str
    after: str
    pruned: NotRequired[str]


class Evaluation(TypedDict):
    """Before and after on held-out text; the sides are objects as `eval --json` prints them."""

    data: str
    before: dict[str, Any]
    after: dict[str, Any]
    kl: NotRequired[float | None]
    ratios: NotRequired[dict[str, Any] | None]


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
    settings: dict[str, Any]
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


class Report(TypedDict):
    """report.json: everything that a run says of itself."""

    version: int
    secateur: str
    created: str
    dry_run: NotRequired[bool]
    recipe: NotRequired[dict[str, Any]]
    recipe_yaml: NotRequired[str]
    command: str
    model: NotRequired[ModelFacts]
    calibration: NotRequired[CalibrationFacts]
    sites: NotRequired[list[SiteFacts]]
    allocation: NotRequired[AllocationFacts]
    reconstruction: NotRequired[list[TunedBlock]]
    sparsity: NotRequired[SparsityFacts]
    parameters: NotRequired[ParameterCounts]
    result: NotRequired[ResultFacts]
    gate: NotRequired[GateFacts]
    recovery: NotRequired[RecoveryFacts]
    evaluation: NotRequired[Evaluation | None]
    samples: NotRequired[list[Sample]]
    forecast: NotRequired[ForecastFacts]
    steps: NotRequired[list[GradualStep]]
    warnings: list[str]
    versions: dict[str, str]
    device: DeviceFacts
    stages: list[StageFacts]
    files: NotRequired[list[str]]
