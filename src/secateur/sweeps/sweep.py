"""`secateur sweep`: many recipes, each in its own folder, and what has come of them side by side.

What is done is in the folders of the trials and nowhere else: a trial whose folder holds its result isn't run again,
and one that was interrupted goes on. So a sweep that was stopped, by whatever it was, is gone on with by saying the
same again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from secateur._version import __version__
from secateur.analysis.compare import compare
from secateur.config.sweep import PAGE, RECORD, Sweep, Trial
from secateur.errors import InputError
from secateur.model.json_files import read_object
from secateur.model.remote_code import allowed
from secateur.report.compare import render
from secateur.report.facts import items, section
from secateur.report.numbers import is_number
from secateur.report.schema.compare import Comparison
from secateur.report.schema.sweep import SweepFacts, TrialFacts, TrialOrder, TrialOutcome
from secateur.sweeps.area import check_folder, open_area, starts, write_file
from secateur.sweeps.progress import SweepProgress
from secateur.sweeps.states import MOST_BYTES, State, states_of
from secateur.sweeps.trial import in_own_process, run_trial
from secateur.system.names import HERE, PLACES, RAY
from secateur.system.on_ray import Lost, OnRay, map_tasks
from secateur.workspace.ownership import MARK, check_apart


def sweep(
    chosen: Sweep,
    out: str | Path,
    *,
    on: str = HERE,
    ray_address: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> SweepFacts:
    """Runs every trial of a sweep in its own folder, and compares the results.

    A trial whose folder holds its result is left as it is, one that was interrupted goes on. A trial that fails is
    told of, and the others are run.

    Args:
        chosen: from `load_sweep` or `make_sweep`.
        out: a new folder, or that of a sweep: `out/NAME` is the result of each trial, as `prune` leaves it, and
            sweep.json and compare.html are those of all.
        on: `here`: one after the other, each in a fresh process. `ray`: as tasks of a Ray cluster (extra `ray`).
        ray_address: of the cluster; None: the cores and GPUs of this machine.
        overwrite: trials of other settings in `out`, and interrupted ones, may be begun anew.
        quiet: no progress display.

    Returns:
        What is in sweep.json: `trials` with their state, and `comparison`, as `compare` gives it.

    Raises:
        InputError: a folder that holds something else or that another sweep is at work in, or no Ray.
    """
    if on not in PLACES:
        raise InputError(f"on {on}: give one of {', '.join(PLACES)}")
    if ray_address is not None and on != RAY:
        raise InputError(f"ray_address {ray_address} is for a sweep on ray; say so, or leave it out")
    if not str(out).strip():
        raise InputError("--out is empty; give the name of a folder")
    folder = Path(os.path.abspath(out))
    states = states_in(chosen, folder, overwrite)
    left = [trial for trial in chosen.trials if states[trial.name] != "done"]
    with open_area(folder):
        cluster = _cluster(chosen, ray_address) if on == RAY else None
        progress = SweepProgress(len(left), len(states) - len(left), quiet)
        outcomes = _run(left, folder, chosen, cluster, overwrite, progress)
        facts = _facts(chosen, folder, on, outcomes)
        # The record first: it says that the page is ours, wherever this is interrupted.
        write_file(folder, RECORD, json.dumps(facts, indent=1) + "\n")
        if "comparison" in facts:
            write_file(folder, PAGE, render(facts["comparison"]))
    return facts


def states_in(chosen: Sweep, out: Path, overwrite: bool = False) -> dict[str, State]:
    """What each trial's folder holds, where `out` can be a sweep's; nothing is written.

    Raises:
        InputError: it can't.
    """
    check_folder(out)
    models = {trial.recipe.model for trial in chosen.trials}
    check_apart(out, [Path(model).expanduser() for model in models])
    return states_of(chosen, out, overwrite)


def _cluster(chosen: Sweep, address: str | None) -> OnRay:
    told = chosen.resources
    return OnRay(address, told.trial_cpus or 1, told.trial_gpus, told.retries)


def _run(
    trials: list[Trial], out: Path, chosen: Sweep, cluster: OnRay | None, overwrite: bool, progress: SweepProgress
) -> dict[str, TrialOutcome]:
    """What has become of each trial that was run."""
    threads = chosen.resources.trial_cpus if cluster is None else cluster.cpus
    orders = [_order(trial, out, threads, overwrite) for trial in trials]
    outcomes: dict[str, TrialOutcome] = {}
    running = map_tasks(in_own_process if cluster is None else run_trial, orders, cluster)
    with progress, closing(running) as each:
        for index, answer in each:
            name = trials[index].name
            outcomes[name] = _lost(name, answer) if isinstance(answer, Lost) else answer
            progress.tell(outcomes[name])
    return outcomes


def _lost(name: str, answer: Lost) -> TrialOutcome:
    return {"name": name, "error": answer.why, "seconds": 0.0}


def _order(trial: Trial, out: Path, threads: int | None, overwrite: bool) -> TrialOrder:
    return {
        "name": trial.name,
        "recipe": trial.recipe.to_yaml(),
        "out": str(out / trial.name),
        "overwrite": overwrite,
        "threads": threads,
        "trusted": allowed(),
        "cwd": os.getcwd(),
        "secateur": __version__,
    }


def _facts(chosen: Sweep, out: Path, on: str, outcomes: Mapping[str, TrialOutcome]) -> SweepFacts:
    trials = [_trial_facts(trial, out, outcomes.get(trial.name)) for trial in chosen.trials]
    done = [out / trial["name"] for trial in trials if trial["state"] == "done"]
    told = chosen.resources
    facts: SweepFacts = {
        "secateur": __version__,
        "on": on,
        "trial_cpus": told.trial_cpus,
        "trial_gpus": told.trial_gpus,
        "retries": told.retries,
        "trials": trials,
        "files": [RECORD, *([PAGE] if done or (out / PAGE).exists() else [])],
    }
    if done:
        facts["comparison"] = _compared(done)
    return facts


def _trial_facts(trial: Trial, out: Path, outcome: TrialOutcome | None) -> TrialFacts:
    """Of a trial that was run, or (no outcome) that was done before."""
    error = None if outcome is None else outcome["error"]
    seconds = None if error is not None else _seconds(out / trial.name)
    return {
        "name": trial.name,
        "changes": dict(trial.changes),
        "state": "done" if error is None else "failed",
        "ran": outcome is not None,
        "attempts": starts(out, trial.name),
        "seconds": seconds,
        "error": error,
        "result": trial.name,
    }


def _seconds(folder: Path) -> float:
    stages = items(read_object(folder / MARK, most_bytes=MOST_BYTES), "stages")
    return round(sum(stage["seconds"] for stage in stages if is_number(stage.get("seconds"))), 3)


def _compared(done: list[Path]) -> Comparison:
    """Against the original, where it is one and the same and was evaluated."""
    models = {str(section(read_object(folder / MARK, most_bytes=MOST_BYTES), "model").get("path")) for folder in done}
    if len(models) == 1:
        try:
            return compare(done, models.pop())
        except InputError:  # moved away since, or known by another name
            pass
    return compare(done)
