"""What `secateur search` can be told: wishes, how long it looks, and the settings of the prune that it ends with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from secateur.config.export import TYPES
from secateur.config.fields import Settings
from secateur.config.flags import CUT, Flag
from secateur.config.parsing import read_mapping
from secateur.config.recipe import Recipe, make_recipe
from secateur.config.suggestions import complaint, nearest
from secateur.config.wishes import PERPLEXITY, SECONDS, TASK, Wish, parse_wishes
from secateur.errors import InputError
from secateur.methods import METHODS
from secateur.model.site_kinds import KINDS, SITE_KINDS
from secateur.numerics.patterns import Pattern

# What the search decides, and what has no place in a plan.
DECIDED = ("sparsity", "params", "size", "flops", "latency", "allocate", "search", "steps", "schedule", "pattern")
HIDDEN = "hidden"
# Latents are of the attention whose heads may go, and a search chooses one thing of each sub-block.
SEARCHED = tuple(kind for kind in SITE_KINDS if KINDS[kind].goes not in ("zeros", "basis") and not KINDS[kind].normed)


class SearchSettings(Settings):
    """Everything that one run of `search` is told; all but a few keys are those of a recipe."""

    sites: Annotated[tuple[str, ...], Flag(CUT, choices=(*SEARCHED, HIDDEN))] = Field(
        SEARCHED, description=f"what may go, where the model has it: {', '.join(SEARCHED)}, {HIDDEN}"
    )
    want: tuple[str, ...] = Field((), description="wishes, such as params=0.75x; without one, the Pareto front")
    trials: Annotated[int, Flag(CUT)] = Field(
        48, ge=1, le=100_000, description="candidates that are measured, beside each piece alone"
    )
    minutes: Annotated[float | None, Flag(CUT)] = Field(
        None, gt=0, le=1e6, description="end the search after this long; the prune that follows isn't in it"
    )
    precision: Annotated[tuple[str, ...], Flag(CUT, choices=TYPES)] = Field(
        (), description="number formats that an export to GGUF may have, such as f16,q8_0,q4_0; one is chosen"
    )
    zeros: Annotated[tuple[str, ...], Flag(CUT)] = Field(
        (),
        description="zeros of single weights, left out where it is stored and run, such as 0.5,2:4; one is chosen",
    )
    finalists: Annotated[int | None, Flag(CUT)] = Field(
        None, ge=1, le=64, description="the best so many are made and compared; default 1, with recover_steps 3"
    )
    recover_steps: Annotated[int | None, Flag(CUT)] = Field(
        None, ge=1, le=100_000_000, description="train the finalists for so many steps before they are compared"
    )

    @field_validator("want", "precision", "zeros", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        parts = list(value or ()) if isinstance(value, list | tuple | None) else [value]
        return tuple(part.strip() for text in parts for part in str(text).split(",") if part.strip())

    @field_validator("precision")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for kind in value:
            if kind not in TYPES:
                raise ValueError(f"precision '{kind}' is unknown{nearest(kind, TYPES)}; GGUF has {', '.join(TYPES)}")
        return tuple(dict.fromkeys(value))

    @field_validator("zeros")
    @classmethod
    def _shares(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        found = dict[str, None]()
        for told in value:
            if ":" in told:
                found[str(Pattern.parse(told))] = None
            elif re.fullmatch(r"0?\.\d+", told) is not None and float(told) > 0:
                found[f"{float(told):g}"] = None
            else:  # YAML 1.1 takes 2:4 for a number in base 60
                quoted = "; in YAML put N:M in quotes" if told.isdecimal() else ""
                raise ValueError(f"zeros '{told}' isn't understood; give shares or N:M, such as 0.5,'2:4'{quoted}")
        return tuple(found)

    @field_validator("sites")
    @classmethod
    def _searched(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for kind in value:
            if kind in SITE_KINDS and kind not in (*SEARCHED, HIDDEN):
                raise ValueError(
                    f"site '{kind}' isn't searched; use prune for it, or {', '.join(SEARCHED)}, {HIDDEN}"
                )
        if value == (HIDDEN,):
            raise ValueError("hidden dimensions go beside something else; add sites, or use prune")
        return value

    @model_validator(mode="after")
    def _undecided(self) -> SearchSettings:
        parse_wishes(self.want)
        for key in DECIDED:
            if key in self.model_fields_set:
                raise ValueError(f"{key} is what search decides; leave it out, or use prune")
        if self.evaluate == "none" and any(wish.about == PERPLEXITY for wish in self.wishes):
            raise ValueError("a wish for perplexity is judged on text, but evaluate is none; leave that out")
        shapes = [wish for wish in self.wishes if wish.of_cost]
        if HIDDEN in self.sites and (not shapes or any(wish.about in SECONDS for wish in shapes)):
            raise ValueError(
                "hidden dimensions go for wishes about params, size, memory or flops alone; give such ones"
            )
        self._stored()
        if self.rivals > 1 and not any(wish.of_cost for wish in self.wishes):
            raise ValueError("finalists are of a choice by what the model takes; add a wish such as params=0.75x")
        if self.rivals > 1 and self.evaluate == "none":
            raise ValueError("finalists are compared on text, but evaluate is none; leave that out")
        if self.recover_steps is not None and self.rivals == 1:
            raise ValueError("recover_steps is for comparing finalists, and finalists is 1; give 2 or more")
        return self

    def _stored(self) -> None:
        """Refuses forms of the whole model that nothing asks for, or beside what isn't searched with them."""
        if not self.form:
            return
        about = {wish.about for wish in self.wishes}
        if self.precision and self.zeros:
            raise ValueError("precision and zeros aren't searched together; leave one out")
        if self.zeros and self.rivals > 1:
            key = "recover_steps" if self.finalists is None else "finalists"
            raise ValueError(f"the best with and without zeros are compared as models already; leave {key} out")
        if self.precision and (not about & {"size", "memory"} or about & {*SECONDS}):
            raise ValueError("precision is for wishes about size or memory, none about seconds; give such ones")
        if self.zeros and not about & {"size", "memory", *SECONDS}:
            raise ValueError("zeros is for wishes about size, memory, latency or prefill; give such ones")
        if HIDDEN in self.sites:
            raise ValueError(f"{self.form} and hidden dimensions aren't searched together; leave one out")
        if self.export is not None:
            raise ValueError(f"{self.form} ends with an export, which the search adds; leave export out")

    @property
    def form(self) -> str:
        """The key that says in which forms the whole model may be stored; empty where none does."""
        return "precision" if self.precision else "zeros" if self.zeros else ""

    def of_each_form(self) -> SearchSettings:
        """The same with a form's share of the trials."""
        count = len(self.precision) or 1 + len(self.zeros)
        return self.model_copy(update={"trials": max(1, self.trials // count)})

    @property
    def rivals(self) -> int:
        """How many candidates are made and compared."""
        return self.finalists or (1 if self.recover_steps is None else 3)

    @property
    def wishes(self) -> tuple[Wish, ...]:
        return parse_wishes(self.want)

    def recipe(self, sites: tuple[str, ...], sparsity: Mapping[str, float], pattern: str = "") -> Recipe:
        """The recipe of a prune with these settings, of these kinds of sites, and of zeros in a pattern."""
        own = {key: getattr(self, key) for key in self.model_fields_set if key in Recipe.model_fields}
        judges = [wish.file for wish in self.wishes if wish.about == TASK]
        tasks = ",".join(dict.fromkeys([*([] if self.tasks is None else self.tasks.split(",")), *judges]))
        more = {name: value for name, value in (("tasks", tasks), ("pattern", pattern)) if value}
        return make_recipe({**own, "sites": sites, "sparsity": dict(sparsity), **more})

    def replaying(self, sites: tuple[str, ...], sparsity: Mapping[str, float], pattern: str = "") -> Recipe:
        """The recipe that a plan is replayed with: methods have chosen already, they only say which quality is meant.

        Args:
            sites, sparsity, pattern: those of the plan.
        """
        quality = self.quality or ("fast" if self.method else "balanced")
        bases = METHODS.able(KINDS[HIDDEN].ability) if HIDDEN in sites else ()
        method = tuple(name for name in self.method if name in bases)
        return self.model_copy(update={"method": method, "quality": quality}).recipe(sites, sparsity, pattern)


def make_search(values: Mapping[str, Any]) -> SearchSettings:
    """Makes the settings of a search from plain values, checked one by one and together.

    Raises:
        InputError: as `make_recipe`.
    """
    for key in values:
        if key not in SearchSettings.model_fields:
            raise InputError(f"search key '{key}' is unknown{nearest(key, SearchSettings.model_fields)}")
    try:
        return SearchSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "missing":
            raise InputError("no model given; name it as an argument or as 'model' in the recipe") from None
        raise InputError(complaint(error)) from None


def load_search(path: str | Path, overrides: Mapping[str, Any] | None = None) -> SearchSettings:
    """Reads the YAML file of a search; `overrides` take the place of what it says.

    Raises:
        InputError: as `load_recipe`.
    """
    values = read_mapping(Path(path), "recipe", "'model' and 'want'")
    return make_search({**values, **(overrides or {})})
