"""bench.json: every form of a model, how fast it is, and what it was measured on."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict


class BenchSettings(TypedDict):
    """What was told."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    tokens: int
    limit: float
    dtype: str
    threads: int


class BenchOrder(BenchSettings):
    """What the process of one form is told."""

    path: str
    form: str
    runtime: str


class MachineFacts(TypedDict):
    """The machine and its software."""

    processor: str
    architecture: str
    features: list[str]
    cores: int | None
    logical_cores: int | None
    threads: int
    memory_bytes: int
    load_before: list[float]
    system: str
    huge_pages: str | None
    python: str
    packages: dict[str, str | None]
    torch_capability: str
    kernels: list[str]
    environment: dict[str, str]


class PackedShape(TypedDict):
    """What became of the packed matrices of one shape."""

    rows: int
    columns: int
    count: int
    runs: str
    kernel: str | None
    kernel_rows: int | None
    tiles_in_float32: bool
    seconds_compressed: float | None
    seconds_dense: float | None


class PlainShape(TypedDict):
    """Matrices of one shape that aren't packed, and up to how many rows of x a kernel of ours multiplies them."""

    rows: int
    columns: int
    count: int
    kernel_rows: int
    seconds_kernel: float | None
    seconds_torch: float | None


class RuntimeFacts(TypedDict):
    """How a compressed model was loaded."""

    kernel: str | None
    shapes: list[PackedShape]
    plain: list[PlainShape]


class DecodeFigures(TypedDict):
    """Greedy decoding in segments; seconds a step."""

    seconds_a_step: float
    slowest_segment: float
    fastest_segment: float
    new_tokens: int
    joules_per_token: float | None
    warm_up_seconds: float


class MeasuredRow(DecodeFigures):
    """A row: one batch and context. The last three compare it with the first form's."""

    batch: int
    context: int
    first_token_seconds: float
    first_token_range: list[float]
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    decode_range: list[float]
    against_first: NotRequired[float]
    against_first_range: NotRequired[list[float]]
    verdict: NotRequired[str]


class SkippedRow(TypedDict):
    """A row that wasn't measured, and why."""

    batch: int
    context: int
    skipped: str


class LoadedForm(TypedDict, total=False):
    """What a form's process says of the form itself, piece by piece."""

    load_seconds: float
    resident_weight_bytes: int
    memory_before_model_bytes: int
    runtime: RuntimeFacts | None
    no_energy: str | None
    peak_memory_bytes: int
    error: str


class BenchAnswer(TypedDict, total=False):
    """One line of a form's process."""

    form: LoadedForm
    row: MeasuredRow | SkippedRow
    error: str


class BenchForm(LoadedForm):
    """One form; `error` where it couldn't be measured."""

    name: str
    side: str
    way: str
    rows: list[MeasuredRow | SkippedRow]
    bytes_on_disk: int


class Bench(TypedDict):
    """bench.json."""

    secateur: str
    model: str
    against: str | None
    settings: BenchSettings
    machine: MachineFacts
    notes: list[str]
    forms: list[BenchForm]
    headline: str
    verdicts: list[str]
