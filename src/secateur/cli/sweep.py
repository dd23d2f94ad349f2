"""`secateur sweep` on the command line; `cli` puts it beside the other commands."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.options import Json, Out, Quiet, RayAddress, Trust, examples, output, place, where
from secateur.errors import InputError, Stopped, Terminated
from secateur.system.display import starting
from secateur.system.names import HERE, RAY

if TYPE_CHECKING:
    from secateur.config.sweep import Sweep

EXAMPLES = (
    "secateur sweep recipes/sweep.yaml --out out/sweep --dry-run",
    "secateur sweep recipes/sweep.yaml --out out/sweep --on ray --trial-cpus 1",
)


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(epilog=examples(*EXAMPLES))(sweep)


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="base, grid and trials", show_default=False)],
    out: Out = None,
    on: Annotated[str, place(help="here (one after the other) or ray (tasks of a cluster)")] = HERE,
    ray_address: RayAddress = None,
    trial_cpus: Annotated[
        int | None, where(help="CPU threads of a trial; default: 1 on Ray, else what torch chooses")
    ] = None,
    trial_gpus: Annotated[float | None, where(help="GPUs of a trial on Ray; 0.5: two trials share one")] = None,
    retries: Annotated[
        int | None, where(help="times that Ray begins a trial again whose process or machine is gone (default: 2)")
    ] = None,
    trust_remote_code: Trust = False,
    overwrite: Annotated[
        bool, output("--overwrite", help="begin trials of other settings, and interrupted ones, anew")
    ] = False,
    dry_run: Annotated[bool, output("--dry-run", help="check and list the trials only")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a grid or a list of recipes, each in its own folder, and compare the results.

    What is done isn't run again, and what was interrupted goes on. Exit code 1: some trials have failed.
    """
    if out is None:
        raise InputError("no output folder given; add --out DIR")
    if on != RAY and (ray_address is not None or trial_gpus is not None or retries is not None):
        raise InputError("--ray-address, --trial-gpus and --retries go with --on ray; add that, or leave them out")
    from secateur.config.sweep import load_sweep

    given = {"trial_cpus": trial_cpus, "trial_gpus": trial_gpus, "retries": retries}
    chosen = load_sweep(file, {key: value for key, value in given.items() if value is not None})
    if dry_run:
        _list(chosen, out, overwrite, as_json)
        return
    with starting(quiet or as_json):
        from secateur.report.terminal.sweep import print_sweep
        from secateur.sweeps.sweep import sweep as run

    try:
        how = {"overwrite": overwrite, "quiet": quiet or as_json}
        found = run(chosen, out, on=on, ray_address=ray_address, **how)
    except KeyboardInterrupt as stop:
        line = "stopped; the same command goes on with the trials that aren't done"
        raise Stopped(line, isinstance(stop, Terminated)) from None
    print(json.dumps(found, indent=1)) if as_json else print_sweep(found, out)
    if any(trial["state"] == "failed" for trial in found["trials"]):
        raise typer.Exit(1)


def _list(chosen: Sweep, out: Path, overwrite: bool, as_json: bool) -> None:
    """What would be run."""
    from secateur.report.terminal.sweep import print_trials
    from secateur.sweeps.sweep import states_in

    states: Mapping[str, Any] = states_in(chosen, Path(os.path.abspath(out)), overwrite)
    trials = [{"name": t.name, "state": states[t.name], "changes": dict(t.changes)} for t in chosen.trials]
    print(json.dumps(trials, indent=1)) if as_json else print_trials(trials)
