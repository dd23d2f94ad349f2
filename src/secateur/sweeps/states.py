"""What a trial's folder holds before the sweep begins: nothing, something to go on from, or its result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from secateur._version import __version__
from secateur.config.recipe import Recipe
from secateur.config.sweep import Sweep, Trial
from secateur.errors import InputError
from secateur.model.json_files import read_object
from secateur.workspace.folder import JOURNAL
from secateur.workspace.journal import read_lines
from secateur.workspace.ownership import MARK, WORK, contents, is_regular, is_work_area

State = Literal["new", "interrupted", "done", "other"]
MOST_BYTES = 2**28
NOT_JOURNALLED = frozenset({"memory", "export", "prompts"})  # may change before an interrupted run goes on
NO_MATTER = frozenset({"memory"})  # changes no result


def states_of(chosen: Sweep, out: Path, overwrite: bool) -> dict[str, State]:
    """What each trial's folder holds; `other`: a run of other settings, which `overwrite` allows to be replaced.

    Raises:
        InputError: a folder that holds another run, or something that Secateur didn't make.
    """
    return {trial.name: _state(trial, out / trial.name, overwrite) for trial in chosen.trials}


def _state(trial: Trial, folder: Path, overwrite: bool) -> State:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: is no folder, so trial {trial.name} can't be there; move it away")
    if is_work_area(folder / WORK):
        lines = read_lines(folder / WORK / JOURNAL)
        told = lines[0]["told"] if lines and isinstance(lines[0]["told"], dict) else None
        if told is None:  # it was stopped before it had decided anything
            return "interrupted"
        changed = _changed(trial.recipe, told, str(told.get("secateur")), NOT_JOURNALLED)
        return _unless(changed, "interrupted", folder, overwrite)
    if is_regular(folder, MARK):
        report = read_object(folder / MARK, most_bytes=MOST_BYTES)
        told = report.get("recipe")
        if isinstance(told, dict) and not report.get("dry_run"):
            changed = _changed(trial.recipe, told, str(report.get("secateur")), NO_MATTER)
            return _unless(changed, "done", folder, overwrite)
    if contents(folder):
        raise InputError(f"{folder}: holds no trial, so trial {trial.name} can't be there; move it away")
    return "new"


def _unless(changed: list[str], state: State, folder: Path, overwrite: bool) -> State:
    if changed and not overwrite:
        raise InputError(
            f"{folder}: holds a run of other settings ({'; '.join(changed[:3])}); "
            "give --overwrite to run it anew, or another --out"
        )
    return "other" if changed else state


def _changed(recipe: Recipe, before: Mapping[str, Any], version: str, ignored: Iterable[str]) -> list[str]:
    """Settings that aren't as they were."""
    now = recipe.model_dump(mode="json", exclude=set(ignored))
    # Of a target, what was found for it stands in the place of these two.
    found = {"sparsity", "sites"} if recipe.limit is not None else set()
    changed = [
        f"{key} was {_shown(before.get(key))}, is {_shown(value)}"
        for key, value in now.items()
        if key not in found and before.get(key) != value
    ]
    return changed + ([f"secateur was {version}, is {__version__}"] if version != __version__ else [])


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
