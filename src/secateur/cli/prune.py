"""`secateur prune` on the command line; `cli` puts it beside the other commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.options import (
    Json,
    Out,
    Overwrite,
    Quiet,
    Resume,
    Revision,
    Threads,
    Trust,
    flags,
    model_given,
    output,
)
from secateur.config.fields import Settings
from secateur.errors import InputError, Stopped, Terminated
from secateur.system.display import starting

if TYPE_CHECKING:
    from secateur.config.plan import Plan


@flags(Settings)
def prune(
    model: Annotated[
        str | None, typer.Argument(help="model folder, 'embedded', or a hub id; or 'model' in the recipe")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="YAML file with these settings; flags override it")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="replay the cuts of this plan.json, choose nothing")] = None,
    *,
    given: Mapping[str, Any],
    revision: Revision = None,
    trust_remote_code: Trust = False,
    threads: Threads = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: Annotated[bool, output("--dry-run", help="write the plan and the forecast only")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Prune a model into a checkpoint that loads, with its plan, report and recipe."""
    if out is None:
        raise InputError("no output folder given; add --out DIR")
    named = model_given(model, revision)
    from secateur.config.plan import Plan
    from secateur.config.recipe import load_recipe, make_recipe
    from secateur.config.texts import check_texts

    told = {**named, **given}
    replay = Plan.read(plan) if plan is not None else None
    if replay is not None:
        told = {**_planned(replay, recipe, named), **told}
    chosen = load_recipe(recipe, told) if recipe is not None else make_recipe(told)
    check_texts(chosen)
    with starting(quiet or as_json):  # imports torch: whatever is wrong with the words is said by now
        from secateur.pipeline.prune import prune as run
        from secateur.report.terminal.run import print_report
        from secateur.system.device import set_threads
        from secateur.workspace.folder import WORK
        from secateur.workspace.journal import last_finished

    set_threads(threads)
    how = {"dry_run": dry_run, "overwrite": overwrite, "resume": resume, "quiet": quiet or as_json}
    try:
        report = run(chosen, out, plan=replay, **how)
    except KeyboardInterrupt as stop:
        last = last_finished(out / WORK)
        kept = "nothing was written" if last is None else f"the same command with --resume goes on after {last}"
        raise Stopped(f"stopped; {kept}", isinstance(stop, Terminated)) from None
    if report:  # under torchrun only the first rank has one
        print(json.dumps(report, indent=1)) if as_json else print_report(report, out)


def _planned(plan: Plan, recipe: Path | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan says of sites; hidden dimensions, which go before and which no plan has, are the recipe's."""
    from secateur.config.recipe import load_recipe

    own = load_recipe(recipe, named) if recipe is not None else None
    if own is None or "hidden" not in own.sites:
        return {"sites": plan.sites, "sparsity": plan.sparsities}
    sparsities = {"hidden": own.sparsity_for("hidden"), **plan.sparsities}
    return {"sites": ("hidden", *plan.sites), "sparsity": sparsities}
