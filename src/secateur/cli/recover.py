"""`secateur recover` on the command line; `cli` puts it beside the other commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.options import (
    Device,
    Dtype,
    Json,
    Out,
    Overwrite,
    Quiet,
    Resume,
    Revision,
    Threads,
    Trust,
    at_least,
    check_data,
    check_mixture,
    check_tasks,
    flags,
    output,
)
from secateur.config.training import Recovery, make_recovery
from secateur.errors import InputError, Stopped
from secateur.system.display import starting


@flags(Recovery)
def recover(
    model: Annotated[str, typer.Argument(help="pruned model folder", show_default=False)],
    *,
    given: Mapping[str, Any],
    revision: Revision = None,
    trust_remote_code: Trust = False,
    evaluate: Annotated[str | None, output(help="text for the report's figures, or none")] = None,
    tasks: Annotated[str | None, output(help="judge on tasks too: files, or names of lm-eval's; commas")] = None,
    tasks_limit: Annotated[int | None, output(help="only the first items of each task", callback=at_least(1))] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    finish: Annotated[bool, output("--finish", help="with --resume: deliver the best state so far")] = False,
    dry_run: Annotated[bool, output("--dry-run", help="forecast the cost only")] = False,
    speed: Annotated[bool, output(help="measure tokens a second and memory")] = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a pruned model a little, zeros kept, to win back what pruning cost."""
    if out is None and not dry_run:
        raise InputError("no output folder given; add --out DIR")
    from secateur.model.hub import at_revision, local_folder

    settings = make_recovery(given)
    check_mixture(settings.data, "--data")
    check_data(None if evaluate == "none" else evaluate)
    check_tasks(tasks)
    model = at_revision(model, revision)
    local_folder(model)  # what isn't there is said at once, not after torch has been imported
    with starting(quiet or as_json):
        from secateur.recovery.recover import recover as run
        from secateur.recovery.recover import stopped_line
        from secateur.report.recovery import print_forecast, print_recovery
        from secateur.system.device import set_threads

    set_threads(threads)
    how_to_run = {"dry_run": dry_run, "overwrite": overwrite, "resume": resume, "finish": finish, "speed": speed}
    target = out or Path()
    try:
        report = run(
            model,
            target,
            settings,
            evaluate=evaluate,
            tasks=tasks,
            tasks_limit=tasks_limit,
            device=device,
            dtype=dtype,
            quiet=quiet or as_json,
            **how_to_run,
        )
    except KeyboardInterrupt as stop:
        by_scheduler = type(stop) is not KeyboardInterrupt  # SIGTERM arrives as a kind of it
        raise Stopped(stopped_line(target), by_scheduler) from None
    if not report:
        return  # under torchrun only the first rank has one
    if as_json:
        print(json.dumps(report, indent=1))
    elif dry_run:
        print_forecast(report)
    else:
        print_recovery(report, target)
