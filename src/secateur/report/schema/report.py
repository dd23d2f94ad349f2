"""The types of report.json, section by section.

Keys that are `NotRequired` are there only where they mean something; what wasn't measured is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, cast

from typing_extensions import TypedDict

from secateur.report.schema.agreement import AgreementFigures
from secateur.report.schema.export import Exported
from secateur.report.schema.figures import Figures, LossFigures, Ratios
from secateur.report.schema.recovery import RecoveryFacts
from secateur.report.schema.tasks import JudgedOnTasks

VERSION = 1  # of the format; a key that changes its meaning, or goes, raises it


class ModelFacts(TypedDict):
    """The model that was cut; `stored_as`: what its weights were before they were dequantised, if they were;
    `remote_code`: files of code that came with it and were run, with their SHA-256."""

    path: str
    digest: str
    architecture: str
    model_type: str
    dtype: str
    layers: int
    stored_as: NotRequired[str]
    remote_code: NotRequired[dict[str, str]]


class CalibrationFacts(TypedDict):
    """The calibration text: where from, and the hashes of the source and of the tokens drawn from it.

    `general`: how many of the samples are of general text beside the source's.
    """

    source: str
    data_sha256: str
    tokens_sha256: str
    samples: int
    length: int
    seed: int
    tokens: int
    general: NotRequired[int]


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
    scores: NotRequired[Sequence[float] | None]
    energies: NotRequired[Mapping[str, float]]
    merged: NotRequired[list[MergedExpert] | None]


class AllocationFacts(TypedDict):
    """How sparsity was spread over layers."""

    how: str
    shares: dict[str, float]


class TunedBlock(TypedDict):
    """One block's reconstruction: relative errors, on the sequences tuned on and on those held out; `compiled`:
    where that was asked for, whether it was."""

    layer: int
    before: float
    after: float
    held_out_before: float
    held_out_after: float
    steps: int
    predictions: bool
    compiled: NotRequired[bool]


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


class ClientWay(TypedDict):
    """How a program runs a result: the command, or why it doesn't."""

    client: str
    how: str | None
    refused: str | None
    tried: str | None


class ResultFacts(TypedDict):
    """How the result loads."""

    loader: str
    architecture: str
    uniform: bool
    clients: NotRequired[list[ClientWay]]


class GateFindings(TypedDict):
    """What the round-trip check found, relative to the largest logit; nothing of the cache of an adapter, and None of
    one that wasn't tried."""

    how: str
    max_logit_difference: float
    max_cache_difference: NotRequired[float | None]
    cache_equals_no_cache: NotRequired[bool | None]
    tolerance: float
    cache_tolerance: NotRequired[float]


class GateFacts(GateFindings):
    """And how long it took."""

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
    """Before and after on held-out text; the sides are objects as `eval --json` prints them,
    less of them where the models were measured block by block."""

    data: str
    before: Figures | LossFigures
    after: Figures | LossFigures
    kl: NotRequired[float | None]
    ratios: NotRequired[Ratios | None]
    exported: NotRequired[ExportedFigures]


class ExportedFigures(LossFigures):
    """Of the result with its matrices rounded to a type of GGUF's, as its export has them."""

    type: str


class Environment(TypedDict):
    """With what and where the run computed, and what each stage took."""

    versions: dict[str, str]
    device: DeviceFacts
    stages: list[StageFacts]


class Cut(TypedDict, total=False):
    """What was cut from which model, and how: as true after a training."""

    model: ModelFacts
    calibration: CalibrationFacts
    sites: list[SiteFacts]
    reconstruction: list[TunedBlock]
    sparsity: SparsityFacts
    parameters: ParameterCounts
    result: ResultFacts
    recipe: Mapping[str, object]
    recipe_yaml: str


class Measured(TypedDict, total=False):
    """What was measured of the result; `not_evaluated`: why nothing was; `agreement`: with the original, by text,
    where there is no perplexity."""

    evaluation: Evaluation | None
    not_evaluated: str
    samples: list[Sample]
    agreement: dict[str, AgreementFigures]
    tasks: JudgedOnTasks


class Outcome(Measured, total=False):
    """What became of the cut model."""

    gate: GateFacts
    recovery: RecoveryFacts
    forecast: ForecastFacts
    export: Exported
    steps: list[GradualStep]


class Asked(Cut):
    """What was asked for, and what was cut for that."""

    version: int
    secateur: str
    created: str
    dry_run: NotRequired[bool]
    command: str
    allocation: NotRequired[AllocationFacts]


class Report(Asked, Outcome, Environment):
    """report.json: everything that a run says of itself."""

    warnings: list[str]
    files: NotRequired[list[str]]


def no_report() -> Report:
    """What ranks other than the first have: an empty one."""
    return cast("Report", {})
