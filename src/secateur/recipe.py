"""The recipe: everything a run is told, in one flat YAML file or as flags of the same names.

    model: path/to/model
    sites: [channel, query_head]
    sparsity: 0.25
    method: obs
    calibrate: general.jsonl

A key that isn't in the schema is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from secateur.errors import InputError
from secateur.methods import METHODS, Method
from secateur.numerics.patterns import Pattern

SITE_KINDS = ("weight", "channel", "query_head", "kv_group", "layer")
# What a method must be able to score, for each kind of site, and the one used where none is named.
CAPABILITY = {"weight": "weights", "channel": "units", "query_head": "units", "kv_group": "units", "layer": "layers"}
DEFAULT_METHOD = {"weights": "sparsegpt", "units": "obs", "layers": "leave_one_out"}


class Recipe(BaseModel):
    """One run of `prune`. The fields are the flags of the command line and the keys of the YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    model: str = Field(description="model folder, or a hub id")
    sites: tuple[str, ...] = Field(("weight",), description=f"what may go: {', '.join(SITE_KINDS)}")
    sparsity: float | dict[str, float] | None = Field(None, description="fraction removed, one or per kind of site")
    method: tuple[str, ...] = Field((), description="one method, or one per kind of site")
    pattern: str = Field("free", description="shape of the zeros of single weights: free or N:M")
    calibrate: str = Field("stdlib", description="calibration text: .jsonl, .txt, .parquet, stdlib or a hub id")
    evaluate: str | None = Field(
        None, description="evaluation text, or none; default: held-out text of the calibration's source"
    )
    samples: int = Field(128, ge=1, description="calibration sequences")
    length: int = Field(512, ge=2, description="tokens per calibration sequence")
    seed: int = Field(0, ge=0, description="of the draw of calibration sequences")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    dtype: str = Field("auto", description="of the computation: auto, float32, bfloat16, float16")
    round_to: int = Field(1, ge=1, description="keep a multiple of this many channels")
    refit: bool = Field(True, description="make up for structured cuts by least squares in the reading Linear")
    bias: Literal["own", "add", "none"] = Field(
        "own", description="refit with a bias: where there is one (own), also where one can be added (add), or none"
    )
    sequential: bool = Field(False, description="weights: gather statistics anew after each group of Linears")
    speed: bool = Field(True, description="measure tokens a second and memory of both models")
    protect: tuple[int, ...] = Field((), description="layers that are left alone; negative counts from the end")
    memory: str | None = Field(None, description="activations that may stay in memory, such as 2GB")

    @field_validator("sites", "method", "protect", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return () if value is None else tuple(value) if isinstance(value, list) else value

    @field_validator("sparsity", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        """`channel:0.25,layer:0.1` on the command line is a mapping in YAML."""
        if isinstance(value, str) and ":" in value:
            return {k.strip(): v for k, _, v in (part.partition(":") for part in value.split(","))}
        return value

    @field_validator("sites")
    @classmethod
    def _known_sites(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for kind in value:
            if kind not in SITE_KINDS:
                raise ValueError(f"site '{kind}' is unknown{_nearest(kind, SITE_KINDS)}")
        if not value:
            raise ValueError(f"no site given; known are {', '.join(SITE_KINDS)}")
        return tuple(k for k in SITE_KINDS if k in value)

    @field_validator("method")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in METHODS:
                raise ValueError(f"method '{name}' is unknown{_nearest(name, METHODS)}")
        return value

    @model_validator(mode="after")
    def _coherent(self) -> Recipe:
        pattern = Pattern.parse(self.pattern)
        if not pattern.free and "weight" not in self.sites:
            raise ValueError(f"pattern {pattern} is for single weights, but sites are {', '.join(self.sites)}")
        for kind in self.sites:
            self.method_for(kind)
            if kind == "weight" and not pattern.free:
                continue
            s = self.sparsity_for(kind)
            if not 0 < s < 1:
                raise ValueError(f"sparsity {s:g} for {kind} is not between 0 and 1; 0.25 removes a quarter")
        return self

    def sparsity_for(self, kind: str) -> float:
        """Fraction that goes of each site of this kind."""
        pattern = Pattern.parse(self.pattern)
        if kind == "weight" and pattern.sparsity is not None:
            return pattern.sparsity
        if isinstance(self.sparsity, dict):
            unknown = [k for k in self.sparsity if k not in self.sites]
            if unknown:
                raise ValueError(f"sparsity names '{unknown[0]}', but sites are {', '.join(self.sites)}")
            if kind not in self.sparsity:
                raise ValueError(f"sparsity says nothing for site '{kind}'")
            return self.sparsity[kind]
        if self.sparsity is None:
            raise ValueError("no sparsity given; --sparsity 0.25 removes a quarter of each site")
        return self.sparsity

    def method_for(self, kind: str) -> Method:
        """The method that scores this kind of site: the first named one that can, else the default."""
        ability = CAPABILITY[kind]
        for name in self.method:
            if ability in METHODS[name].prunes:
                return METHODS[name]
        # A method that was named must be of use somewhere; for the other kinds the default steps in.
        useful = {CAPABILITY[k] for k in self.sites}
        for name in self.method:
            if not METHODS[name].prunes & useful:
                able = ", ".join(n for n, m in METHODS.items() if ability in m.prunes)
                raise ValueError(f"method '{name}' doesn't score site '{kind}'; methods that do: {able}")
        return METHODS[DEFAULT_METHOD[ability]]

    def to_yaml(self) -> str:
        """The recipe that repeats this run; parse it back with `load_recipe`."""
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in self.model_dump().items()}
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def make_recipe(values: dict[str, Any]) -> Recipe:
    """A recipe from plain values.

    Raises:
        InputError: an unknown key (with the nearest known one) or a value out of range, in one line.
    """
    for key in values:
        if key not in Recipe.model_fields:
            raise InputError(f"recipe key '{key}' is unknown{_nearest(key, Recipe.model_fields)}")
    try:
        return Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise InputError(f"the recipe lacks '{where}'") from None
        given = "" if first["type"] == "value_error" else f"{where} = {first['input']!r}: "
        raise InputError(f"{given}{message[0].lower()}{message[1:]}") from None


def load_recipe(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Reads a YAML recipe; `overrides` (the flags that were given) win.

    Raises:
        InputError: no such file, not YAML, an unknown key, a value out of range.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such recipe file")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: a recipe is a mapping of keys such as 'model' and 'sparsity'")
    return make_recipe({**values, **(overrides or {})})


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.4)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"
