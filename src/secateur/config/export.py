"""What an export is told: the flags of `secateur export`, or the section `export` of a recipe.

export: {to: gguf, type: q8_0}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from secateur.config.flags import FORM, OUTPUT, Flag
from secateur.config.suggestions import complaint, nearest
from secateur.errors import InputError

To = Literal["padded", "gguf", "onnx", "openvino", "compressed", "hub"]
FORMATS: tuple[str, ...] = get_args(To)
# Of GGUF, as the package `gguf` makes them.
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
FLOATS = ("f32", "f16", "bf16")
NUMBERS = {"gguf": TYPES, "onnx": ("f32", "f16"), "openvino": ("f32", "f16")}
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


class Export(BaseModel):
    """One export. The fields are the flags of `secateur export` and the keys of `export`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, str_strip_whitespace=True)

    to: Annotated[To | None, Flag(FORM, required=True)] = Field(
        None,
        description="padded: stock class, zeros up to the widest layer; gguf: llama.cpp, ollama; compressed; hub",
    )
    type: Annotated[Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"] | None, Flag(FORM)] = Field(
        None, description="number format of the matrices; default as stored, of onnx and openvino f32"
    )
    multiple: Annotated[int, Flag(FORM)] = Field(
        1, ge=1, le=2**16, description="fill FFN widths up with zeros to a multiple of this many channels"
    )
    repo: Annotated[str | None, Flag(OUTPUT)] = Field(
        None, description="hub: the repository that gets the folder, such as org/name"
    )
    private: Annotated[bool, Flag(OUTPUT)] = Field(True, description="hub: a repository that is made is private")

    @model_validator(mode="after")
    def _coherent(self) -> Export:
        if self.to is None:
            raise ValueError(f"no format given; --to is one of {', '.join(FORMATS)}")
        known = NUMBERS.get(self.to, ())
        if self.type is not None and self.type not in known:
            words = f"has {', '.join(known)}" if known else "leaves numbers as they are"
            raise ValueError(f"type {self.type}: {self.to} {words}")
        if self.multiple > 1 and self.to not in ("padded", "gguf"):
            raise ValueError(f"multiple is for padded and gguf, and to is {self.to}; leave it out")
        if self.to == "hub" and (self.repo is None or not REPOSITORY.fullmatch(self.repo)):
            given = "no repo given" if self.repo is None else f"repo {self.repo[:100]} is no name of a repository"
            raise ValueError(f"{given}; --repo org/name says where to")
        if self.to != "hub" and self.repo is not None:
            raise ValueError(f"repo is for hub, and to is {self.to}; leave it out")
        return self

    @property
    def quantised(self) -> bool:
        """Whether its matrices are rounded to a few bits."""
        return self.type is not None and self.type not in FLOATS


def make_export(values: Mapping[str, Any]) -> Export:
    """An export from plain values.

    Raises:
        InputError: an unknown key (with the nearest known one) or a value out of range, in one line.
    """
    try:
        found = _parse(dict(values))
    except ValueError as error:
        raise InputError(str(error)) from None
    assert isinstance(found, Export)
    return found


def _parse(value: Any) -> Any:
    """As `make_export`, for a section of a recipe: it raises ValueError, which the recipe explains."""
    if value is None or isinstance(value, Export):
        return value
    if not isinstance(value, dict):
        raise ValueError("export is a section of keys, such as export: {to: gguf, type: q8_0}")
    for key in value:
        if key not in Export.model_fields:
            raise ValueError(f"export key '{key}' is unknown{nearest(key, Export.model_fields)}")
    try:
        return Export(**value)
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


# The type of the recipe's field.
ExportSection = Annotated[Export | None, BeforeValidator(_parse)]
