"""What a run can be told: the schema of a recipe, key by key."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

from secateur.config.export import ExportSection
from secateur.config.flags import CUT, DATA, OUTPUT, REPAIR, WHERE, Flag
from secateur.config.parsing import Spelled
from secateur.config.presets import Masks, Objective, Window
from secateur.config.quantities import parse_bytes, parse_search
from secateur.config.suggestions import nearest
from secateur.config.training import RecoverSection
from secateur.methods import METHODS
from secateur.model.clients import CLIENTS
from secateur.model.hub import id_of
from secateur.model.site_kinds import SITE_KINDS
from secateur.system.names import DEVICES, DTYPES, check_device, check_dtype

LIMITS = ("params", "size", "flops", "latency")  # targets that a sparsity is found for, see `budget`


class Settings(Spelled):
    """The flags of the command line and the keys of the YAML file, each right by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, str_strip_whitespace=True)

    model: str = Field(description="model folder, or a hub id")
    sites: Annotated[tuple[str, ...], Flag(CUT, choices=SITE_KINDS)] = Field(
        ("weight",), description=f"what may go: {', '.join(SITE_KINDS)}"
    )
    sparsity: Annotated[float | dict[str, float] | None, Flag(CUT, "-s")] = Field(
        None, description="fraction removed: 0.25, or per kind of site channel:0.25,layer:0.1"
    )
    params: Annotated[str | None, Flag(CUT)] = Field(
        None, description="instead of sparsity: parameters left at most, such as 75% or 1.5B"
    )
    size: Annotated[str | None, Flag(CUT)] = Field(
        None, description="instead of sparsity: bytes on disk at most, such as 75% or 2GB"
    )
    flops: Annotated[str | None, Flag(CUT)] = Field(
        None, description="instead of sparsity: FLOPs a token at most, such as 75% or 3G"
    )
    latency: Annotated[str | None, Flag(CUT)] = Field(
        None, description="instead of sparsity: a decoding step on this machine at most, such as 75% or 12ms"
    )
    allocate: Annotated[Literal["local", "global", "owl", "sensitivity", "evolve"], Flag(CUT)] = Field(
        "local", description="how sparsity is spread over layers: local (all alike), global, owl, sensitivity, evolve"
    )
    search: Annotated[str, Flag(CUT)] = Field(
        "100", description="how long evolve searches: 100 weighings of the whole model, or 10min"
    )
    client: Annotated[str | None, Flag(CUT, choices=CLIENTS, spelled="for")] = Field(
        None, description=f"what the result has to run in: {', '.join(CLIENTS)}"
    )
    method: Annotated[tuple[str, ...], Flag(CUT, "-m", choices=METHODS)] = Field(
        (), description="one method, or one per kind of site; see secateur methods"
    )
    steps: Annotated[int, Flag(CUT)] = Field(
        1, ge=1, le=1000, description="cuts, each of what the ones before have left; recover comes after each"
    )
    schedule: Annotated[Literal["cubic", "linear"], Flag(CUT)] = Field(
        "cubic", description="how much goes in each step: cubic (much first), or linear (alike)"
    )
    quality: Annotated[Literal["fast", "balanced", "best"] | None, Flag(CUT, "-Q")] = Field(
        None, description="fast, balanced or best; default balanced, or fast where a method is named"
    )
    target: Annotated[Literal["pruned", "dense", "residual"] | None, Flag(REPAIR)] = Field(
        None, description="what a cut Linear is solved for; default by quality"
    )
    masks: Annotated[Masks | None, Flag(REPAIR)] = Field(
        None,
        description="cuts while a block is tuned: kept, or made bit by bit (gradual); default by quality",
    )
    reconstruct: Annotated[int | None, Flag(REPAIR)] = Field(
        None, ge=0, le=1_000_000, description="steps of block reconstruction; default by quality"
    )
    objective: Annotated[Objective | None, Flag(REPAIR)] = Field(
        None,
        description="what tuning makes small: the error of the output, also what it costs the loss, or for the last "
        "block that of the predictions; default by quality",
    )
    window: Annotated[Window, Flag(REPAIR)] = Field(
        "block", description="tuned at once: half a block, a block, or a block judged after this many blocks"
    )
    compile_blocks: Annotated[bool, Flag(REPAIR)] = Field(
        False, description="tune blocks by torch.compile: faster where they are tuned for long, other roundings"
    )
    pattern: Annotated[str, Flag(CUT, choices=("free", "2:4", "4:8"))] = Field(
        "free", description="shape of the zeros of single weights: free or N:M"
    )
    calibrate: Annotated[str, Flag(DATA, choices=("stdlib", "self"))] = Field(
        "stdlib",
        description="calibration text: a file of text or conversations, task:FILE, stdlib or a hub id; several with "
        "shares; or self",
    )
    evaluate: Annotated[str | None, Flag(DATA, choices=("none", "stdlib"))] = Field(
        None, description="evaluation text, or none; default: held-out text of the calibration's source"
    )
    tasks: Annotated[str | None, Flag(DATA)] = Field(
        None, description="judge both models on tasks too: files of questions, or names of lm-eval's; commas"
    )
    tasks_limit: Annotated[int | None, Flag(DATA)] = Field(
        None, ge=1, le=2**31, description="only the first items of each task; default all"
    )
    for_task: Annotated[str | None, Flag(DATA)] = Field(
        None, description="aim at a task: every second question of this file calibrates, the others judge"
    )
    keep_general: Annotated[float, Flag(DATA)] = Field(
        0.3, ge=0, lt=1, description="with for_task: share of the calibration that stays with the text of calibrate"
    )
    samples: Annotated[int, Flag(DATA)] = Field(128, ge=1, le=1_000_000, description="calibration sequences")
    length: Annotated[int, Flag(DATA)] = Field(512, ge=2, le=2**24, description="tokens per calibration sequence")
    general_text: Annotated[float | None, Flag(DATA)] = Field(
        None,
        ge=0,
        le=8,
        description="sequences of Python's own prose and code for each one of calibrate, so that the repair doesn't "
        "learn that text by heart; default by quality",
    )
    allow_little_text: Annotated[bool, Flag(DATA)] = Field(
        False, description="prune although the text gives less than a tenth of the sequences asked for"
    )
    allow_unused_tensors: Annotated[bool, Flag(DATA)] = Field(
        False, description="prune although the files hold tensors of layers that the model doesn't use; they are lost"
    )
    seed: Annotated[int, Flag(DATA)] = Field(
        0, ge=0, le=2**63 - 1, description="of the draw of calibration sequences"
    )
    device: Annotated[str, Flag(WHERE, choices=DEVICES)] = Field(
        "auto", description="auto, cpu, cuda, mps, xpu, npu, or one of several: cuda:1"
    )
    dtype: Annotated[str, Flag(WHERE, choices=DTYPES)] = Field(
        "auto", description="of the computation: auto, float32, bfloat16, float16"
    )
    round_to: Annotated[int, Flag(CUT)] = Field(
        1, ge=1, le=2**20, description="keep a multiple of this many channels"
    )
    refit: Annotated[bool, Flag(REPAIR)] = Field(
        True, description="make up for structured cuts by least squares in the reading Linear"
    )
    bias: Annotated[Literal["own", "add", "none"], Flag(REPAIR)] = Field(
        "own",
        description="refit with a bias: where there is one (own), also where one can be added (add), or none; "
        "add without refit: the bias takes over the means",
    )
    merge_experts: Annotated[bool, Flag(REPAIR)] = Field(
        False, description="let experts that stay absorb those that go, where that lowers the error"
    )
    explain: Annotated[bool, Flag(OUTPUT)] = Field(
        True, description="write evidence.json: for each removed unit, why it could go"
    )
    sequential: Annotated[bool | None, Flag(REPAIR)] = Field(
        None, description="weights: gather statistics anew after each group of Linears; default by quality"
    )
    prompts: Annotated[str | None, Flag(OUTPUT)] = Field(
        None,
        description="file of prompts that both models continue in the report; default: openings of held-out text",
    )
    speed: Annotated[bool, Flag(OUTPUT)] = Field(
        True, description="measure tokens a second and memory of both models"
    )
    protect: Annotated[tuple[int, ...], Flag(CUT)] = Field(
        (), description="layers that are left alone, such as 0,-1; negative counts from the end"
    )
    memory: Annotated[str | None, Flag(WHERE)] = Field(
        None, description="for activations, such as 2GB; models that are larger are verified and evaluated in blocks"
    )
    export: ExportSection = Field(None, description="the last stage: a section of keys, see serving")
    recover: RecoverSection = Field(None, description="training after pruning: a section of keys, see recovery")

    @field_validator("model")
    @classmethod
    def _hub_address(cls, value: str) -> str:
        return id_of(value)

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        return check_device(value)

    @field_validator("client")
    @classmethod
    def _client(cls, value: str | None) -> str | None:
        if value is not None and value not in CLIENTS:
            raise ValueError(f"for {value} is unknown{nearest(value, CLIENTS)}")
        return value

    @field_validator("dtype")
    @classmethod
    def _dtype(cls, value: str) -> str:
        return check_dtype(value)

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
