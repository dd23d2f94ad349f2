"""What a recovery is told: the flags of `secateur recover`, or the section `recover` of a recipe.

recover: {how: distill, steps: 300, data: general.jsonl}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from secateur.config.flags import LEARN, TRAIN, Flag
from secateur.config.suggestions import complaint, nearest
from secateur.errors import InputError

LOSSES = ("lm", "logits", "hidden")
DEFAULT_LOSS = {"full": {"lm": 1.0}, "lora": {"lm": 1.0}, "distill": {"logits": 1.0, "hidden": 5.0}}


class Recovery(BaseModel):
    """How to train a model after pruning, and on what.

    The fields are the flags of `secateur recover` and the keys of a recipe's section `recover`; docs/recovery.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, str_strip_whitespace=True)

    how: Annotated[Literal["lora", "distill", "full"], Flag(LEARN)] = Field(
        "distill", description="distill: all weights, from the teacher; full: all weights, from text; lora: adapters"
    )
    data: Annotated[str | None, Flag(LEARN, "-d", required=True)] = Field(
        None, description="training text, several with shares; default in a recipe: that of the calibration"
    )
    steps: Annotated[int, Flag(TRAIN)] = Field(300, ge=1, le=100_000_000, description="steps of the optimiser")
    batch: Annotated[int, Flag(TRAIN)] = Field(
        8, ge=1, le=2**20, description="sequences a step, of all processes together"
    )
    micro_batch: Annotated[int | None, Flag(TRAIN)] = Field(
        None,
        ge=1,
        le=2**20,
        description="sequences that go through the model at once, per process; default all of a step's",
    )
    length: Annotated[int, Flag(TRAIN)] = Field(512, ge=2, le=2**24, description="tokens per sequence")
    loss: Annotated[dict[str, float] | None, Flag(LEARN, choices=LOSSES)] = Field(
        None,
        description="lm, logits, hidden, or a mix such as lm:0.5,logits:1; default lm, to distill logits:1,hidden:5",
    )
    teacher: Annotated[str | None, Flag(LEARN)] = Field(
        None, description="dense model to learn from; default: what the model was pruned from"
    )
    teacher_dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16", "int8"], Flag(LEARN)] = Field(
        "auto", description="of the teacher in memory; int8: its matrices at a byte an entry; default the products'"
    )
    teacher_cache: Annotated[str | None, Flag(LEARN)] = Field(
        None, description="file of the teacher's top logits, made where it's missing"
    )
    temperature: Annotated[float, Flag(LEARN)] = Field(
        1.0, gt=0, le=1e4, description="of both models' logits where they are compared"
    )
    top_k: Annotated[int | None, Flag(LEARN)] = Field(
        None, ge=1, le=2**24, description="compare only the teacher's k likeliest tokens, and the rest as one"
    )
    optimizer: Annotated[Literal["muon", "adamw"] | None, Flag(TRAIN)] = Field(
        None, description="muon: of the layers' matrices, AdamW of the rest; default muon, for lora adamw"
    )
    learning_rate: Annotated[float | None, Flag(TRAIN)] = Field(
        None, gt=0, le=1e3, description="peak; default: a range test picks it"
    )
    warmup: Annotated[float, Flag(TRAIN)] = Field(
        0.05, ge=0, lt=1, description="share of the steps in which the rate rises; then a cosine"
    )
    weight_decay: Annotated[float, Flag(TRAIN)] = Field(0.0, ge=0, le=1e3, description="the optimiser's")
    rank: Annotated[int, Flag(TRAIN)] = Field(8, ge=1, le=2**16, description="lora: rank of the adapters")
    alpha: Annotated[float | None, Flag(TRAIN)] = Field(
        None, gt=0, le=1e6, description="lora: scale of the adapters times their rank; default 2 x rank"
    )
    merge: Annotated[bool, Flag(TRAIN)] = Field(
        True, description="lora: hand back a plain checkpoint, else a peft adapter"
    )
    evaluate_every: Annotated[int | None, Flag(TRAIN)] = Field(
        None,
        ge=1,
        le=100_000_000,
        description="steps between looks at the held-out sequences; default a tenth of all",
    )
    seed: Annotated[int, Flag(TRAIN)] = Field(0, ge=0, le=2**63 - 1, description="of the order of the sequences")
    checkpointing: Annotated[bool, Flag(TRAIN)] = Field(
        False, description="compute activations twice instead of keeping them"
    )
    shard: Annotated[bool, Flag(TRAIN)] = Field(
        False, description="spread weights, gradients and optimiser over the processes (FSDP)"
    )
    track: Annotated[str | None, Flag(TRAIN, choices=("tensorboard", "wandb"))] = Field(
        None, description="trackers of transformers, such as tensorboard or wandb; commas"
    )

    @field_validator("data", "teacher", "teacher_cache", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("loss", mode="before")
    @classmethod
    def _mix(cls, value: Any) -> Any:
        """`lm:0.5,logits:1` on the command line is a mapping in YAML; a name alone has the weight 1."""
        if isinstance(value, str):
            value = {name.strip(): part or 1.0 for name, _, part in (p.partition(":") for p in value.split(","))}
        if value is None or not isinstance(value, dict):
            return value
        try:
            mix = {str(name): float(part) for name, part in value.items()}
        except (TypeError, ValueError):
            raise ValueError(f"loss {value}: weights are numbers, such as lm:0.5,logits:1") from None
        for name, part in mix.items():
            if name not in LOSSES:
                raise ValueError(f"loss '{name}' is unknown{nearest(name, LOSSES)}")
            if not 0 < part < float("inf"):
                raise ValueError(f"loss {name}:{part:g} must be above 0")
        return mix

    @model_validator(mode="after")
    def _coherent(self) -> Recovery:
        if self.top_k is not None and "logits" not in self.mix:
            raise ValueError("top_k is for the loss 'logits'; add logits to the loss, or leave top_k out")
        if self.teacher_cache is not None and self.top_k is None:
            raise ValueError("teacher_cache holds the teacher's top logits; say how many with top_k, such as 64")
        if self.teacher_cache is not None and "hidden" in self.mix:
            raise ValueError("teacher_cache has no hidden states; leave 'hidden' out of the loss, or the cache")
        if not self.merge and self.how != "lora":
            raise ValueError(f"no-merge keeps adapters, but how is {self.how}; use how lora")
        if self.shard and self.how == "lora":
            raise ValueError("shard is for how distill and full: adapters need little memory; leave shard out")
        if self.optimizer == "muon" and self.how == "lora":
            raise ValueError("muon is for whole matrices, and lora trains thin factors; use optimizer adamw")
        return self

    @property
    def mix(self) -> dict[str, float]:
        """Loss -> its weight. With a cache of the teacher the default is `logits` alone: it has no hidden states."""
        if self.loss is None and self.teacher_cache is not None:
            return {"logits": 1.0}
        return self.loss or DEFAULT_LOSS[self.how]

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss compares with the dense model."""
        return bool({"logits", "hidden"} & set(self.mix))

    @property
    def looks(self) -> int:
        """Steps between two looks at the held-out sequences."""
        return self.evaluate_every or max(1, self.steps // 10)

    @property
    def scale(self) -> float:
        """What the product of the adapters' matrices is multiplied by, times the rank."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank


def make_recovery(values: Mapping[str, Any]) -> Recovery:
    """Makes a recovery from plain values, checked one by one and together.

    Args:
        values: key -> value, by the names of a recipe's section `recover`.

    Raises:
        InputError: an unknown key (with the nearest known one), a value out of range, or keys that contradict each
            other, in one line.
    """
    try:
        return _parse(values)
    except ValueError as error:
        raise InputError(str(error)) from None


def _parse(value: Any) -> Any:
    """As `make_recovery`, for a section of a recipe: it raises ValueError, which the recipe explains."""
    if value is None or isinstance(value, Recovery):
        return value
    if not isinstance(value, dict):
        raise ValueError("recover is a section of keys, such as recover: {how: distill, steps: 300}")
    for key in value:
        if key not in Recovery.model_fields:
            raise ValueError(f"recover key '{key}' is unknown{nearest(key, Recovery.model_fields)}")
    try:
        return Recovery(**value)
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


# The type of the recipe's field.
RecoverSection = Annotated[Recovery | None, BeforeValidator(_parse)]
