"""`secateur search` on the command line; `cli` puts it beside the other commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.options import (
    Json,
    Out,
    Overwrite,
    Quiet,
    RayAddress,
    Resume,
    Revision,
    Threads,
    Trust,
    check_data,
    check_tasks,
    examples,
    flags,
    model_given,
    place,
)
from secateur.config.searching import DECIDED, SearchSettings
from secateur.config.wishes import ABOUT
from secateur.errors import InputError, Stopped, Terminated
from secateur.system.display import starting
from secateur.system.names import HERE, RAY

EXAMPLES = (
    "secateur search embedded --want params=0.75x --out out/found",
    "secateur search path/to/model --want size=100MB --want 'perplexity<=1.1x' --out out/found",
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=examples(*EXAMPLES))(search)


@flags(SearchSettings, without=DECIDED)
def search(
    model: Annotated[
        str | None, typer.Argument(help="model folder, 'embedded', or a hub id; or 'model' in the recipe")
    ] = None,
    want: Annotated[
        list[str] | None,
        typer.Option("--want", "-w", help=f"what to reach, such as params=0.75x: {', '.join(ABOUT)}; several"),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="YAML file with these settings; flags override it")
    ] = None,
    *,
    given: Mapping[str, Any],
    revision: Revision = None,
    trust_remote_code: Trust = False,
    threads: Threads = None,
    on: Annotated[str, place(help="here, or ray: candidates are measured as tasks of a cluster")] = HERE,
    ray_address: RayAddress = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find what to cut so that a model keeps your limits and loses least, and make that model."""
    if out is None:
        raise InputError("no output folder given; add --out DIR")
    if on != RAY and ray_address is not None:
        raise InputError("--ray-address goes with --on ray; add that, or leave it out")
    named = model_given(model, revision)
    from secateur.config.searching import load_search, make_search

    told = {**given, **named, **({"want": tuple(want)} if want else {})}
    settings = load_search(recipe, told) if recipe is not None else make_search(told)
    check_data(None if settings.evaluate == "none" else settings.evaluate)
    check_tasks(settings.tasks)
    for wish in settings.wishes:
        check_tasks(wish.file or None)
    with starting(quiet or as_json):  # imports torch: whatever is wrong with the words is said by now
        from secateur.report.terminal.search import print_search
        from secateur.search.search import search as run
        from secateur.system.device import set_threads
        from secateur.workspace.folder import WORK

    set_threads(threads or (1 if on == RAY else None))
    try:
        how = {"overwrite": overwrite, "resume": resume, "quiet": quiet or as_json}
        found = run(settings, out, on=on, ray_address=ray_address, **how)
    except KeyboardInterrupt as stop:
        kept = "nothing was written"
        if (out / WORK).exists():
            kept = "the same command with --resume goes on from what was measured"
        raise Stopped(f"stopped; {kept}", isinstance(stop, Terminated)) from None
    print(json.dumps(found, indent=1)) if as_json else print_search(found, out)
    if any(wish["held"] is False for wish in found["wishes"]):
        raise typer.Exit(1)
