"""The recipe: everything a run is told, in one flat YAML file or as flags of the same names.

    model: path/to/model
    sites: [channel, query_head]
    sparsity: 0.25
    method: obs
    calibrate: general.jsonl

A key that isn't in the schema is an error that names the nearest known one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError, model_validator

from secateur.config.configuration import (
    Configuration,
    budget_of,
    method_name,
    preset_of,
    resolve,
    sparsity_of,
)
from secateur.config.fields import LIMITS, Settings
from secateur.config.parsing import read_mapping
from secateur.config.presets import Preset
from secateur.config.quantities import parse_amount
from secateur.config.suggestions import complaint, nearest
from secateur.data.sources import shares_of
from secateur.data.tasks import is_file
from secateur.errors import InputError
from secateur.methods import METHODS
from secateur.model.site_kinds import KINDS, SUB_BLOCKS
from secateur.numerics.patterns import Pattern

if TYPE_CHECKING:
    from secateur.methods import Method


class Recipe(Settings):
    """Everything that one run of `prune` is told: the settings, and what they mean together.

    The fields are the keys of a recipe file and the flags of `secateur prune`; docs/recipes.md lists them.
    """

    @model_validator(mode="after")
    def _coherent(self) -> Recipe:
        pattern = Pattern.parse(self.pattern)
        if not pattern.free and "weight" not in self.sites:
            raise ValueError(f"pattern {pattern} is for single weights, but sites are {', '.join(self.sites)}")
        spread = {kind for kind in self.sites if KINDS[kind].goes in ("units", "zeros")}
        searches = self.allocate == "evolve" and "layer" in self.sites and not set(self.sites) & set(SUB_BLOCKS)
        idle = not (spread if pattern.free else spread - {"weight"})
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
        self._check_aim()
        config = resolve(self)
        for kind, s in config.sparsities.items():
            if not 0 < s < 1:
                raise ValueError(f"sparsity {s:g} for {kind} is not between 0 and 1; 0.25 removes a quarter")
        self._check_tuning(config)
        self._check_methods(config)
        return self

    def _check_aim(self) -> None:
        """One task, one general text: shares of several would be shares of shares."""
        if self.for_task is None:
            return
        if "," in self.for_task or not is_file(self.for_task):
            raise ValueError(f"for_task {self.for_task}: give one .jsonl file of questions")
        if self.keep_general and self.calibrate == "self":
            raise ValueError("for_task keeps general text beside it, and 'self' isn't one; give calibrate a text")
        if self.keep_general and len(shares_of(self.calibrate)) > 1:
            raise ValueError(
                f"for_task keeps one general text beside it, but calibrate is {self.calibrate}; give one"
            )

    def _check_tuning(self, config: Configuration) -> None:
        """What is said of block reconstruction must fit together, and there must be one."""
        if self.sequential is False and config.target == "residual" and "weight" in self.sites:
            raise ValueError("target residual goes Linear by Linear; leave sequential on, or use target dense")
        if config.steps:
            if self.samples < 2:
                raise ValueError(
                    "reconstruct holds sequences out to stop by; use --samples 2 or more, or --reconstruct 0"
                )
            return
        if self.window != "block":
            raise ValueError(f"window {self.window} is of block reconstruction; add --reconstruct 400")
        if self.compile_blocks:
            raise ValueError("compile_blocks is of block reconstruction; add --reconstruct 400")
        if self.objective in ("loss", "predictions"):
            raise ValueError(f"objective {self.objective} is of block reconstruction; add --reconstruct 400")
        if self.masks == "gradual":
            raise ValueError("masks gradual are found while blocks are tuned; add --reconstruct 400")

    @property
    def limit(self) -> str | None:
        """The setting that is given in place of a sparsity, one of `fields.LIMITS`; None where none is."""
        return budget_of(self)

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
        """What `quality` stands for; a method that is named alone is run as published, with nothing added."""
        return preset_of(self)

    def _check_methods(self, config: Configuration) -> None:
        """A method that was named must be of use; for kinds that no named method scores, the default steps in."""
        used = {config.method_names[kind] for kind in self.sites}
        for name in self.method:
            if name in used:
                continue
            able = METHODS.facts(name).prunes
            rivals = [(config.method_names[kind], kind) for kind in self.sites if KINDS[kind].ability in able]
            if rivals:
                raise ValueError(f"method '{name}' has nothing to do: '{rivals[0][0]}' scores {rivals[0][1]} already")
            kind = self.sites[0]
            fit = ", ".join(METHODS.able(KINDS[kind].ability))
            raise ValueError(f"method '{name}' doesn't score {kind}; methods that do: {fit}")

    def sparsity_for(self, kind: str) -> float:
        """Gives the fraction of each site of this kind that goes, between 0 and 1.

        Raises:
            ValueError: the recipe doesn't say, or says something that its pattern contradicts.
        """
        return sparsity_of(self, kind)

    def method_for(self, kind: str) -> Method:
        """The method that scores this kind of site: the first named one that can, else the default."""
        return METHODS[method_name(self, kind)]

    def to_yaml(self) -> str:
        """Writes the recipe as YAML that repeats this run; `load_recipe` reads it back from a file."""
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in self.model_dump().items()}
        if self.sparsity is not None:  # found for a target, which it stands for now
            data |= dict.fromkeys(LIMITS)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """Makes a recipe from plain values, checked one by one and together.

    Args:
        values: key -> value, by the names of a recipe file; `model` must be given.

    Raises:
        InputError: an unknown key (with the nearest known one), a value out of range, or keys that contradict each
            other, in one line.
    """
    for key in values:
        if key not in Recipe.model_fields:
            raise InputError(f"recipe key '{key}' is unknown{nearest(key, Recipe.model_fields)}")
    try:
        return Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "missing":
            where = first["loc"][0]
            raise InputError(f"no {where} given; name it as an argument or as '{where}' in the recipe") from None
        raise InputError(complaint(error)) from None
    except UnicodeEncodeError:  # pydantic's own, while it words what is wrong
        raise InputError("a value of the recipe holds half a surrogate pair; it is not valid Unicode") from None


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe file and checks it as `make_recipe` does.

    Args:
        path: a YAML file of at most 1 MiB: a mapping of keys.
        overrides: values that take the place of the file's, such as the flags that were given.

    Raises:
        InputError: no such file, not YAML, an unknown key, a value out of range.
    """
    values = read_mapping(Path(path), "recipe", "'model' and 'sparsity'")
    return make_recipe({**values, **(overrides or {})})
