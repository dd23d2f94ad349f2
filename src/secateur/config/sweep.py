"""The sweep: several recipes in one YAML file, each of which is a trial.

    base: {model: path/to/model, sites: [channel], samples: 64}
    grid: {method: [obs, wanda], sparsity: [0.25, 0.5]}
    trials:
      - {name: shallow, sites: [layer], sparsity: 0.2}

`base` are keys of a recipe that all trials have. `grid` names values of a key; every combination of them is a trial.
`trials` are listed one by one. What a trial says takes the place of what the base says, key by key.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateur.config.parsing import read_mapping
from secateur.config.recipe import Recipe, make_recipe
from secateur.config.suggestions import nearest
from secateur.config.texts import check_texts
from secateur.errors import InputError
from secateur.model.hub import local_folder

MOST_TRIALS = 1000
MOST_LETTERS = 100  # of a name
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._+-]*[A-Za-z0-9_+-])?")
RECORD, PAGE = "sweep.json", "compare.html"  # what lies beside the trials


class Resources(BaseModel):
    """What each trial gets; keys of the file and flags of `secateur sweep`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    trial_cpus: Annotated[int | None, Field(ge=1, le=2**16)] = Field(
        None, description="CPU threads of a trial; default: 1 on Ray, else what torch chooses"
    )
    trial_gpus: Annotated[float, Field(ge=0, le=2**10, allow_inf_nan=False)] = Field(
        0, description="GPUs of a trial on Ray; 0.5: two trials share one"
    )
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        2, description="times that Ray begins a trial again whose process or machine is gone"
    )


class _File(Resources):
    """The keys of the file."""

    base: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    trials: list[dict[str, Any]] = Field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """One recipe of a sweep.

    Args:
        name: of its folder.
        changes: what it says beside the base.
    """

    name: str
    changes: Mapping[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """What a sweep is told, from `load_sweep` or `make_sweep`: trials that have been checked, and what each gets."""

    trials: tuple[Trial, ...]
    resources: Resources


def load_sweep(path: str | Path, resources: Mapping[str, Any] | None = None) -> Sweep:
    """Reads a sweep file and checks it as `make_sweep` does.

    Args:
        path: a YAML file of at most 1 MiB.
        resources: `trial_cpus`, `trial_gpus` and `retries` in place of the file's.

    Raises:
        InputError: no such file, not YAML, or whatever `make_sweep` refuses.
    """
    file = Path(path)
    values = read_mapping(file, "sweep", "'base' and 'grid'")
    try:
        return make_sweep({**values, **(resources or {})})
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def make_sweep(values: Mapping[str, Any]) -> Sweep:
    """Makes a sweep from plain values, every trial of it checked.

    Args:
        values: `base`, `grid`, `trials`, `trial_cpus`, `trial_gpus`, `retries`, as in a sweep file.

    Raises:
        InputError: an unknown key, more than 1000 trials, a trial whose recipe isn't one or names a model or text
            that isn't there, two trials of one name or with the same recipe; in one line.
    """
    for key in values:
        if key not in _File.model_fields:
            raise InputError(f"sweep key '{key}' is unknown{nearest(key, _File.model_fields)}")
    try:
        told = _File(**values)
    except ValidationError as error:
        raise InputError(_complaint(error)) from None
    every = list(_combinations(told))
    if not every:
        raise InputError("the sweep has no trial; give 'grid' or 'trials'")
    names = _names(every)
    recipes = [_recipe(name, {**told.base, **changes}) for name, (_, changes) in zip(names, every, strict=True)]
    trials = tuple(
        Trial(name, _as_json(changes), recipe)
        for name, recipe, (_, changes) in zip(names, recipes, every, strict=True)
    )
    _check_different(trials)
    _check_inputs(trials)
    return Sweep(trials, Resources(**{key: getattr(told, key) for key in Resources.model_fields}))


def _complaint(error: ValidationError) -> str:
    """The first key whose value has another type or range than it must."""
    first = error.errors()[0]
    where, message = ".".join(map(str, first["loc"])), first["msg"]
    return f"{where[:MOST_LETTERS]} = {repr(first['input'])[:60]}: {message[0].lower()}{message[1:]}"


def _combinations(told: _File) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """The name, where it's given, and the changes of each trial; counted before they are made."""
    for key, choices in told.grid.items():
        if not choices:
            raise InputError(f"grid key '{key}' has no values; list some or leave it out")
    of_grid = math.prod(len(choices) for choices in told.grid.values()) if told.grid else 0
    if of_grid + len(told.trials) > MOST_TRIALS:
        raise InputError(f"the sweep has {of_grid + len(told.trials):,} trials; at most {MOST_TRIALS:,} are taken")
    if told.grid:
        for values in itertools.product(*told.grid.values()):
            yield None, dict(zip(told.grid, values, strict=True))
    for one in told.trials:
        yield one.get("name"), {key: value for key, value in one.items() if key != "name"}


def _names(every: Iterable[tuple[str | None, Mapping[str, Any]]]) -> list[str]:
    """Names of folders: those that are given, else what a trial says. Those that would be alike get a hash, so that
    a trial keeps its name whatever else is added to the file."""
    listed = list(every)
    names = [_check_name(given) if given is not None else _described(changes) for given, changes in listed]
    times = Counter(name.lower() for name in names)  # some file systems don't tell Name from name
    for index, (given, changes) in enumerate(listed):
        if given is None and times[names[index].lower()] > 1:
            names[index] = f"{names[index]}-{_hash(changes)}"
    twice = [name for name, count in Counter(name.lower() for name in names).items() if count > 1]
    if twice:
        raise InputError(f"two trials are called {twice[0]}; give each its own name and settings")
    return names


def _check_name(name: Any) -> str:
    if not isinstance(name, str) or len(name) > MOST_LETTERS or not NAME.fullmatch(name):
        raise InputError(
            f"trial name {str(name)[:MOST_LETTERS]!r}: give at most {MOST_LETTERS} letters, digits and any of . _ + -"
        )
    if name.lower() in (RECORD, PAGE):
        raise InputError(f"trial name {name!r} is a file of the sweep itself; choose another")
    return name


def _described(changes: Mapping[str, Any]) -> str:
    name = "_".join(f"{_plain(key)}-{_spelled(value)}" for key, value in changes.items()) or "base"
    return name if len(name) <= MOST_LETTERS - 20 else f"{name[: MOST_LETTERS - 30].rstrip('-_.')}-{_hash(changes)}"


def _spelled(value: Any) -> str:
    """A value as a part of a folder's name: of a path its last part."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping):
        return "+".join(f"{_plain(key)}{_plain(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return "+".join(map(_plain, value)) or "none"
    return _plain(f"{value:g}") if isinstance(value, float) else _plain(str(value).rstrip("/").rpartition("/")[2])


def _plain(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", str(value))[:MOST_LETTERS].strip("-.") or "x"


def _hash(changes: Mapping[str, Any]) -> str:
    told = json.dumps(changes, sort_keys=True, default=str)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _recipe(name: str, values: Mapping[str, Any]) -> Recipe:
    try:
        return make_recipe(values)
    except InputError as error:
        raise InputError(f"trial {name}: {error}") from None


def _as_json(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """As sweep.json has them: a recipe takes paths too."""
    plain: Mapping[str, Any] = json.loads(json.dumps(changes, default=str))
    return plain


def _check_different(trials: Iterable[Trial]) -> None:
    known: dict[str, str] = {}
    for trial in trials:
        other = known.setdefault(trial.recipe.model_dump_json(), trial.name)
        if other != trial.name:
            raise InputError(f"trials {other} and {trial.name} are told the same; leave one out")


def _check_inputs(trials: Iterable[Trial]) -> None:
    """Models and texts are there; those that several trials share are looked for once."""
    models: set[str] = set()
    texts: set[tuple[str | None, ...]] = set()
    for trial in trials:
        recipe = trial.recipe
        named = (recipe.prompts, recipe.calibrate, recipe.evaluate, recipe.tasks, recipe.for_task)
        try:
            if recipe.model not in models:
                local_folder(recipe.model)
            if named not in texts:
                check_texts(recipe)
        except InputError as error:
            raise InputError(f"trial {trial.name}: {error}") from None
        models.add(recipe.model)
        texts.add(named)
