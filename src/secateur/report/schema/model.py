"""What is said of a model and its weights: `inspect`, `sensitivity`, `compress` and `decompress` with `--json`."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict

CountRange = TypedDict("CountRange", {"from": int, "to": int, "step": int})  # a keyword is no name of a field


Counts = CountRange | list[int] | list[str]


class Part(TypedDict):
    """A part of the model and its share of all parameters."""

    part: str
    parameters: int
    share: float


class SiteRow(TypedDict):
    """One kind of site; `keep`: the counts, or the patterns, that a stock class loads."""

    kind: str
    per_layer: str
    units: int
    params_per_unit: int
    share: float
    keep: Counts
    legal: str
    hardware: str


class SpeedRow(TypedDict):
    """What a kind of cut speeds up, and what it doesn't."""

    kind: str
    speeds_up: str
    does_not: str


class ClientFacts(TypedDict):
    """What a program that results have to run in changes: `refused` names the kinds of sites that it doesn't take."""

    name: str
    tried: str | None
    how: str | None
    refused: dict[str, str]
    notes: list[str]


class ForecastRow(TypedDict):
    """One kind of run. `least_memory_bytes`: with all hidden states on disk; `fits`: in what is free."""

    cut: str
    quality: str
    seconds: float
    evaluation_seconds: float
    memory_bytes: int
    least_memory_bytes: int
    disk_bytes: int
    fits: bool


class Forecast(TypedDict):
    """What pruning would take here, by formulas, in fp32. `bf16_times_as_fast`: products in bf16 beside those."""

    machine: str
    flops_per_second: float
    bf16_times_as_fast: float
    free_memory_bytes: int
    free_disk_bytes: int
    samples: int
    length: int
    rows: list[ForecastRow]


class Inspected(TypedDict):
    """`inspect --json`."""

    model: str
    architecture: str
    model_type: str
    dtype: str
    layers: int
    hidden_size: int
    context: int | None
    parameters: int
    linear_parameters: int
    bytes_on_disk: int
    flops_per_token: int
    flops_per_token_at_context: int
    kv_cache_bytes_per_token: int
    parts: list[Part]
    sites: list[SiteRow]
    speed: list[SpeedRow]
    found: str
    not_offered: list[str]
    left_out: list[str]
    stored_as: NotRequired[str]
    client: NotRequired[ClientFacts]
    forecast: NotRequired[Forecast]


class TrialCut(TypedDict):
    """A cut that was tried alone, and what it did to the predictions."""

    site: str
    kind: str
    layer: int
    level: float
    kl: float


class Sensitivity(TypedDict):
    """`sensitivity --json`."""

    model: str
    calibration: str
    data_sha256: str
    tokens: int
    methods: dict[str, str]
    sites: list[TrialCut]


class PackedFigures(TypedDict):
    """What packing came to, in bytes."""

    values: str
    group: int | None
    tensors: int
    compressed: int
    bytes_before: int
    bytes_after: int
    matrix_bytes_before: int
    matrix_bytes_after: int
    sparsity: float


class Compressed(PackedFigures):
    """`compress --json`."""

    model: str
    out: str
    exact_bits: bool
    negative_zeros: int
    seconds: float
    warnings: list[str]


class Decompressed(TypedDict):
    """`decompress --json`."""

    model: str
    out: str
    tensors: int
    bytes_before: int
    bytes_after: int
    seconds: float
    warnings: list[str]


class CompressionMark(TypedDict):
    """report.json of a folder that `compress` or `decompress` has made."""

    secateur: str
    compression: Compressed | Decompressed
    files: NotRequired[list[str]]
