"""What is measured of a model on text: `eval --json`, `generate --json`, and the report's before and after."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict


class TextFigures(TypedDict):
    """Of one text; `kl` where another model was given, None where the two split it differently. `difference_stderr`:
    standard error of the two models' difference in nats a token, from window to window."""

    data: str
    data_sha256: str
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    windows: int
    kl: NotRequired[float | None]
    difference_stderr: NotRequired[float | None]


class LossFigures(TextFigures):
    """Of a model: of its first text, and in `sets` of each. Block by block, no more is measured."""

    model: str
    sets: dict[str, TextFigures]
    length: int


class OwnSpeed(TypedDict):
    """Medians at batch 1 with their intervals, and memory; None where speed wasn't measured."""

    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    prefill_range: list[float] | None
    decode_range: list[float] | None
    prompt_tokens: int | None
    new_tokens: int | None
    speed_runs: int | None
    peak_memory_bytes: int | None
    memory_before_model_bytes: int | None


class SpeedFigures(OwnSpeed):
    """And how busy the machine was before."""

    load_before: float | None
    cores: int | None


class Described(LossFigures):
    """And the model's size."""

    parameters: int
    nonzero_parameters: int
    bytes_on_disk: int
    device: str
    dtype: str
    threads: int


class Figures(Described, SpeedFigures):
    """Of a model that fits in memory."""


class Ratios(TypedDict):
    """This model's figures divided by the reference's; None where one of them is unknown or zero."""

    perplexity: float | None
    bits_per_byte: float | None
    parameters: float | None
    nonzero_parameters: float | None
    bytes_on_disk: float | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    peak_memory_bytes: float | None


class Evaluated(Figures):
    """`eval --json`; the last two with `--against`."""

    notes: NotRequired[list[str]]
    reference: NotRequired[Figures]
    ratios: NotRequired[Ratios]


class Continuation(TypedDict):
    """How a model goes on from a prompt."""

    model: str
    prompt: str
    text: str
    tokens: int
    seconds: float
    device: str
    dtype: str
    temperature: float
    seed: int


class Generated(Continuation):
    """`generate --json`; `reference` with `--against`."""

    reference: NotRequired[Continuation]
