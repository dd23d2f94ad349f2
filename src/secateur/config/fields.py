"""What a run can be told: the schema of a recipe, key by key."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from secateur.config.parsing import Spelled
from secateur.config.presets import Masks, Objective, Window
from secateur.config.quantities import parse_bytes, parse_search
from secateur.config.training import RecoverSection
from secateur.methods import METHODS
from secateur.model.site_kinds import SITE_KINDS

LIMITS = ("params", "size", "flops", "latency")  # targets that a sparsity is found for, see `budget`


class Settings(Spelled):
    """The flags of the command line and the keys of the YAML file, each right by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, str_strip_whitespace=True)

    model: str = Field(description="model folder, or a hub id")
    sites: tuple[str, ...] = Field(("weight",), description=f"what may go: {', '.join(SITE_KINDS)}")
    sparsity: float | dict[str, float] | None = Field(None, description="fraction removed, one or per kind of site")
    params: str | None = Field(None, description="instead of sparsity: parameters left at most, such as 75% or 1.5B")
    size: str | None = Field(None, description="instead of sparsity: bytes on disk at most, such as 75% or 2GB")
    flops: str | None = Field(None, description="instead of sparsity: FLOPs a token at most, such as 75% or 3G")
    latency: str | None = Field(
        None, description="instead of sparsity: a decoding step on this machine at most, such as 75% or 12ms"
    )
    allocate: Literal["local", "global", "owl", "sensitivity", "evolve"] = Field(
        "local", description="how sparsity is spread over layers: local (all alike), global, owl, sensitivity, evolve"
    )
    search: str = Field("100", description="how long evolve searches: 100 weighings of the whole model, or 10min")
    method: tuple[str, ...] = Field((), description="one method, or one per kind of site")
    steps: int = Field(
        1, ge=1, le=1000, description="cuts, each of what the ones before have left; recover comes after each"
    )
    schedule: Literal["cubic", "linear"] = Field(
        "cubic", description="how much goes in each step: cubic (much first), or linear (alike)"
    )
    quality: Literal["fast", "balanced", "best"] | None = Field(
        None, description="fast, balanced or best; default balanced, or fast where a method is named"
    )
    target: Literal["pruned", "dense", "residual"] | None = Field(
        None, description="what a cut Linear is solved for; default by quality"
    )
    masks: Masks | None = Field(
        None,
        description="cuts while a block is tuned: kept, or made bit by bit (gradual); default by quality",
    )
    reconstruct: int | None = Field(
        None, ge=0, le=1_000_000, description="steps of block reconstruction; default by quality"
    )
    objective: Objective | None = Field(
        None,
        description="what tuning makes small: the error of the output, also what it costs the loss, or for the last "
        "block that of the predictions; default by quality",
    )
    window: Window = Field(
        "block", description="tuned at once: half a block, a block, or a block judged after this many blocks"
    )
    pattern: str = Field("free", description="shape of the zeros of single weights: free or N:M")
    calibrate: str = Field(
        "stdlib",
        description="calibration text: .jsonl, .txt, .parquet, stdlib or a hub id; several with shares; or self",
    )
    evaluate: str | None = Field(
        None, description="evaluation text, or none; default: held-out text of the calibration's source"
    )
    samples: int = Field(128, ge=1, le=1_000_000, description="calibration sequences")
    length: int = Field(512, ge=2, le=2**24, description="tokens per calibration sequence")
    allow_little_text: bool = Field(
        False, description="prune although the text gives less than a tenth of the sequences asked for"
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="of the draw of calibration sequences")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    dtype: str = Field("auto", description="of the computation: auto, float32, bfloat16, float16")
    round_to: int = Field(1, ge=1, le=2**20, description="keep a multiple of this many channels")
    refit: bool = Field(True, description="make up for structured cuts by least squares in the reading Linear")
    bias: Literal["own", "add", "none"] = Field(
        "own",
        description="refit with a bias: where there is one (own), also where one can be added (add), or none; "
        "add without refit: the bias takes over the means",
    )
    merge_experts: bool = Field(
        False, description="let experts that stay absorb those that go, where that lowers the error"
    )
    explain: bool = Field(True, description="write evidence.json: for each removed unit, why it could go")
    sequential: bool | None = Field(
        None, description="weights: gather statistics anew after each group of Linears; default by quality"
    )
    speed: bool = Field(True, description="measure tokens a second and memory of both models")
    protect: tuple[int, ...] = Field((), description="layers that are left alone; negative counts from the end")
    memory: str | None = Field(
        None, description="for activations, such as 2GB; models that are larger are verified and evaluated in blocks"
    )
    recover: RecoverSection = Field(None, description="training after pruning: a section of keys, see recovery")

    @field_validator("memory")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_bytes(value)
        return value

    @field_validator("search")
    @classmethod
    def _long_enough(cls, value: str) -> str:
        parse_search(value)
        return value

    @field_validator("sites")
    @classmethod
    def _known_sites(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for kind in value:
            if kind not in SITE_KINDS:
                raise ValueError(f"site '{kind}' is unknown{nearest(kind, SITE_KINDS)}")
        if not value:
            raise ValueError(f"no site given; known are {', '.join(SITE_KINDS)}")
        return tuple(k for k in SITE_KINDS if k in value)

    @field_validator("method")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in METHODS:
                raise ValueError(f"method '{name}' is unknown{nearest(name, METHODS)}")
        return value


def nearest(word: str, known: Any) -> str:
    """The end of a complaint about an unknown word."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.4)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"
