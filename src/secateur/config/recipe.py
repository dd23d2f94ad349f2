"""The recipe: everything a run is told, in one flat YAML file or as flags of the same names.

    model: path/to/model
    sites: [channel, query_head]
    sparsity: 0.25
    method: obs
    calibrate: general.jsonl

A key that isn't in the schema is an error that names the nearest known one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from secateur.config.fields import LIMITS, Settings, nearest
from secateur.config.parsing import StrictLoader
from secateur.config.plan import SUB_BLOCKS
from secateur.config.presets import PRESETS, Masks, Objective, Preset
from secateur.config.quantities import parse_amount, parse_bytes
from secateur.errors import InputError
from secateur.methods import METHODS, Method
from secateur.numerics.patterns import Pattern
from secateur.numerics.targets import Target

# What a method must be able to score, for each kind of site, and the one used where none is named.
CAPABILITY = {
    "weight": "weights",
    "channel": "units",
    "query_head": "units",
    "kv_group": "units",
    "expert": "experts",
    "hidden": "dimensions",
    "attention": "sub-blocks",
    "ffn": "sub-blocks",
    "layer": "layers",
}
# For weights it depends on the quality.
DEFAULT_METHOD = {
    "units": "obs",
    "experts": "reap",
    "dimensions": "pca",
    "sub-blocks": "leave_one_out",
    "layers": "leave_one_out",
}
STEPS_FOR_MASKS = 100  # in fewer, a mask that is found while tuning is no better than one that is chosen


class Recipe(Settings):
    """One run of `prune`: the settings, and what they mean together."""

    @model_validator(mode="after")
    def _coherent(self) -> Recipe:
        pattern = Pattern.parse(self.pattern)
        if not pattern.free and "weight" not in self.sites:
            raise ValueError(f"pattern {pattern} is for single weights, but sites are {', '.join(self.sites)}")
        whole = {"layer", "hidden", *SUB_BLOCKS}
        searches = self.allocate == "evolve" and "layer" in self.sites and not set(self.sites) & set(SUB_BLOCKS)
        idle = set(self.sites) <= (whole if pattern.free else whole | {"weight"})
        if self.allocate != "local" and idle and not searches:
            whole_sites = "layers and sub-blocks go whole, hidden dimensions everywhere"
            what = whole_sites if pattern.free else f"pattern {pattern} takes the same of every Linear"
            raise ValueError(f"allocate {self.allocate} has nothing to spread: {what}; leave it out")
        if self.merge_experts and "expert" not in self.sites:
            raise ValueError(
                f"merge_experts is for experts, but sites are {', '.join(self.sites)}; add --sites expert"
            )
        if isinstance(self.sparsity, dict):
            for kind in self.sparsity:
                if kind not in self.sites:
                    raise ValueError(f"sparsity names '{kind}', but sites are {', '.join(self.sites)}")
        self._check_budget()
        for kind in self.sites if self.limit is None else ():
            s = self.sparsity_for(kind)
            if not 0 < s < 1:
                raise ValueError(f"sparsity {s:g} for {kind} is not between 0 and 1; 0.25 removes a quarter")
        if self.sequential is False and self.chosen_target == "residual" and "weight" in self.sites:
            raise ValueError("target residual goes Linear by Linear; leave sequential on, or use target dense")
        if self.chosen_steps and self.samples < 2:
            raise ValueError(
                "reconstruct holds sequences out to stop by; use --samples 2 or more, or --reconstruct 0"
            )
        if self.window != "block" and not self.chosen_steps:
            raise ValueError(f"window {self.window} is of block reconstruction; add --reconstruct 400")
        if self.objective in ("loss", "predictions") and not self.chosen_steps:
            raise ValueError(f"objective {self.objective} is of block reconstruction; add --reconstruct 400")
        if self.masks == "gradual" and not self.chosen_steps:
            raise ValueError("masks gradual are found while blocks are tuned; add --reconstruct 400")
        self._check_methods()
        return self

    @property
    def limit(self) -> str | None:
        """Which target stands in the place of a sparsity."""
        return next((key for key in LIMITS if getattr(self, key) is not None), None)

    def _check_budget(self) -> None:
        if self.limit is None:
            return
        given = [key for key in ("sparsity", *LIMITS) if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} say the same thing twice; give one")
        if "weight" in self.sites:
            raise ValueError(f"{self.limit} is about what is there, and zeros are; name other sites, or a sparsity")
        parse_amount(str(getattr(self, self.limit)), self.limit)

    @property
    def preset(self) -> Preset:
        """The quality asked for; a method that is named alone is run as published, with nothing added."""
        return PRESETS[self.quality or ("fast" if self.method else "balanced")]

    @property
    def chosen_target(self) -> Target:
        return self.target or self.preset.target

    @property
    def chosen_sequential(self) -> bool:
        if self.sequential is None:  # side by side, the writers of a block would all make up for the same drift
            return self.preset.sequential or self.chosen_target == "residual"
        return self.sequential

    @property
    def chosen_steps(self) -> int:
        return self.preset.reconstruct if self.reconstruct is None else self.reconstruct

    @property
    def chosen_masks(self) -> Masks:
        if self.masks is None and self.chosen_steps < STEPS_FOR_MASKS:
            return "kept"
        return self.masks or self.preset.masks

    @property
    def chosen_objective(self) -> Objective:
        return self.objective or (self.preset.objective if self.chosen_steps else "output")

    def _check_methods(self) -> None:
        """A method that was named must be of use; for kinds that no named method scores, the default steps in."""
        used = {self.method_for(kind).name for kind in self.sites}
        for name in self.method:
            if name in used:
                continue
            able = METHODS[name].prunes
            rivals = [(self.method_for(kind).name, kind) for kind in self.sites if CAPABILITY[kind] in able]
            if rivals:
                raise ValueError(f"method '{name}' has nothing to do: '{rivals[0][0]}' scores {rivals[0][1]} already")
            kind = self.sites[0]
            fit = ", ".join(n for n, m in METHODS.items() if CAPABILITY[kind] in m.prunes)
            raise ValueError(f"method '{name}' doesn't score {kind}; methods that do: {fit}")

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else parse_bytes(self.memory)

    def sparsity_for(self, kind: str) -> float:
        """Fraction that goes of each site of this kind.

        Raises:
            ValueError: the recipe doesn't say, or says something that its pattern contradicts.
        """
        own = self.sparsity.get(kind) if isinstance(self.sparsity, dict) else self.sparsity
        pattern = Pattern.parse(self.pattern)
        if kind == "weight" and pattern.sparsity is not None:
            # A number for all kinds is for the others, if there are any.
            meant = own is not None and (isinstance(self.sparsity, dict) or len(self.sites) == 1)
            if meant and not math.isclose(own or 0, pattern.sparsity, abs_tol=0.005):
                raise ValueError(
                    f"pattern {pattern} removes {pattern.sparsity:g}, but sparsity says {own:g}; give one"
                )
            return pattern.sparsity
        if self.sparsity is None:
            raise ValueError("no sparsity given; --sparsity 0.25 removes a quarter of each site")
        if own is None:
            raise ValueError(f"sparsity says nothing for site '{kind}'")
        return own

    def method_for(self, kind: str) -> Method:
        """The method that scores this kind of site: the first named one that can, else the default."""
        ability = CAPABILITY[kind]
        able = (METHODS[name] for name in self.method if ability in METHODS[name].prunes)
        return next(able, METHODS[DEFAULT_METHOD.get(ability, self.preset.weights)])

    def to_yaml(self) -> str:
        """The recipe that repeats this run; parse it back with `load_recipe`."""
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in self.model_dump().items()}
        if self.sparsity is not None:  # found for a target, which it stands for now
            data |= dict.fromkeys(LIMITS)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def make_recipe(values: dict[str, Any]) -> Recipe:
    """A recipe from plain values.

    Raises:
        InputError: an unknown key (with the nearest known one) or a value out of range, in one line.
    """
    for key in values:
        if key not in Recipe.model_fields:
            raise InputError(f"recipe key '{key}' is unknown{nearest(key, Recipe.model_fields)}")
    try:
        return Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise InputError(f"no {where} given; name it as an argument or as '{where}' in the recipe") from None
        given = "" if first["type"] == "value_error" else f"{where} = {first['input']!r}: "
        raise InputError(f"{given}{message[0].lower()}{message[1:]}") from None


MOST_BYTES = 2**20


def load_recipe(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Reads a YAML recipe; `overrides` (the flags that were given) win.

    Raises:
        InputError: no such file, not YAML, an unknown key, a value out of range.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such recipe file")
    try:
        if file.stat().st_size > MOST_BYTES:
            raise InputError(f"{file}: has more than {MOST_BYTES:,} bytes, which no recipe has")
        values = yaml.load(file.read_text(encoding="utf-8"), StrictLoader)
    except RecursionError:
        raise InputError(f"{file}: is nested too deeply for a recipe") from None
    except (yaml.YAMLError, ValueError) as error:  # UnicodeDecodeError is one, and so is a date that isn't
        raise InputError(f"{file}: is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: a recipe is a mapping of keys such as 'model' and 'sparsity'")
    return make_recipe({**values, **(overrides or {})})
