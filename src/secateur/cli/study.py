"""Commands that look and don't cut: text, methods, why units went, what each site would cost, results together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.options import (
    Against,
    Device,
    Dtype,
    Json,
    Model,
    Quiet,
    Revision,
    Runtime,
    Trust,
    at_least,
    completer,
    examples,
    model_path,
)
from secateur.errors import InputError
from secateur.methods import METHODS
from secateur.model.site_kinds import REFITTED, UNIT_KINDS
from secateur.system.display import starting

EXAMPLES = {
    "generate": (
        "secateur generate out/small 'Once upon a time'",
        "secateur generate out/small 'Once upon a time' --against path/to/model --tokens 50",
    ),
    "compare": (
        "secateur compare out/small out/recovered",
        "secateur compare out/small out/recovered --against path/to/model --page compare.html",
    ),
    "show": ("secateur show out/small", "secateur show out/small --json"),
    "methods": ("secateur methods", "secateur methods --json"),
    "explain": ("secateur explain out/small", "secateur explain out/small --layer 1 --site channel"),
    "sensitivity": (
        "secateur sensitivity embedded --sites channel --levels 0.25,0.5",
        "secateur sensitivity path/to/model --calibrate general.jsonl --page sensitivity.html",
    ),
}
LOOKED_AT = tuple(kind for kind in UNIT_KINDS if kind in REFITTED)
MEASURED = (*LOOKED_AT, "weight", "expert")


def register(app: typer.Typer) -> None:
    """Adds the commands of this file to the command line."""
    for command in (generate, methods, show, explain, sensitivity, compare):
        app.command(epilog=examples(*EXAMPLES[command.__name__]))(command)


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="text to continue", show_default=False)],
    against: Against = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    tokens: Annotated[int, typer.Option("--tokens", "-n", help="new tokens at most", callback=at_least(1))] = 100,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token")] = 0.0,
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    runtime: Runtime = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Continue a prompt with one model, or with two to compare."""
    folder, other = model_path(model, revision), None if against is None else model_path(against)
    with starting(quiet or as_json):
        from secateur.evaluation import generate as write
        from secateur.report.terminal.tables import print_generation

    found = write(folder, prompt, tokens, other, temperature, seed, device, dtype, runtime, quiet or as_json)
    print(json.dumps(found, indent=1)) if as_json else print_generation(found)


def methods(as_json: Json = False) -> None:
    """List the pruning methods: what each prunes, what it needs, its paper."""
    from secateur.config.presets import PRESETS
    from secateur.model.site_kinds import KINDS
    from secateur.report.terminal.tables import print_methods

    rows = [
        {"name": name, "title": m.title, "prunes": sorted(m.prunes), "needs": sorted(m.needs), "paper": m.paper}
        for name, m in ((name, METHODS.facts(name)) for name in METHODS)
    ]
    defaults = {kind.ability: kind.method or PRESETS["balanced"].weights for kind in KINDS.values()}
    print(json.dumps(rows, indent=1)) if as_json else print_methods(rows, defaults)


def show(
    out: Annotated[Path, typer.Argument(help="output folder of a finished run", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show a finished run at a glance: whether it was worth it, before and after as bars, where units went."""
    from secateur.analysis.compare import read_result
    from secateur.report.html.bench import print_bench, print_compression
    from secateur.report.terminal.picture import print_picture

    report = read_result(out)
    if as_json:
        print(json.dumps(report, indent=1))
    elif "forms" in report:
        print_bench(report)
    elif "compression" in report:
        print_compression(report["compression"])
    else:
        print_picture(report, out)


def explain(
    out: Annotated[Path, typer.Argument(help="output folder of a finished prune", show_default=False)],
    layer: Annotated[int | None, typer.Option(help="one layer, with each of its removed units")] = None,
    unit: Annotated[int | None, typer.Option(help="one unit of that layer, removed or kept")] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(LOOKED_AT[:-1])} or {LOOKED_AT[-1]}, where several were cut",
            autocompletion=completer(LOOKED_AT),
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say why units went: what the kept ones know of them, who knows it, on which text they were largest."""
    from secateur.analysis.explain import explain as look
    from secateur.report.terminal.explained import print_explanation

    found = look(out, layer, unit, site)
    print(json.dumps(found, indent=1)) if as_json else print_explanation(found)


def sensitivity(
    model: Model,
    calibrate: Annotated[str, typer.Option(help="text to measure on, as for prune")] = "stdlib",
    sites: Annotated[
        str,
        typer.Option(
            help="kinds of sites: weight, channel, query_head, kv_group, latent, expert; commas",
            autocompletion=completer(MEASURED),
        ),
    ] = "channel,query_head,kv_group,weight",
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="as for prune", autocompletion=completer(METHODS))
    ] = None,
    levels: Annotated[str, typer.Option(help="fractions that are cut, with commas")] = "0.25,0.5,0.75",
    samples: Annotated[int, typer.Option(help="sequences, 16 at most")] = 16,
    length: Annotated[int, typer.Option(help="tokens per sequence")] = 512,
    seed: Annotated[int, typer.Option(help="of the draw of sequences")] = 0,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    page: Annotated[Path | None, typer.Option(help="also write the heat map as an HTML page to this file")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure what cutting each site alone does to the model's predictions: a table and a heat map."""
    from secateur.config.parsing import fraction
    from secateur.config.recipe import make_recipe
    from secateur.model.hub import at_revision
    from secateur.report.html.sensitivity import print_sensitivity, write_page

    _check_page(page)
    model = at_revision(model, revision)
    try:
        chosen = tuple(fraction(part) for part in levels.split(","))
    except ValueError:
        raise InputError(f"levels {levels}: give fractions with commas, such as 0.25,0.5") from None
    methods = () if method is None else tuple(method.split(","))
    named = {"model": model, "sites": sites, "method": methods, "sparsity": 0.5, "calibrate": calibrate}
    make_recipe({**named, "samples": samples, "length": length, "seed": seed})  # mistakes, before torch is imported
    with starting(quiet or as_json):
        from secateur.analysis.sensitivity import sensitivity as measure

    found = measure(
        model,
        calibrate,
        tuple(sites.split(",")),
        methods,
        chosen,
        samples,
        length,
        seed,
        device,
        dtype,
        quiet or as_json,
    )
    if page is not None:
        write_page(found, page)
    print(json.dumps(found, indent=1)) if as_json else print_sensitivity(found, page)


def compare(
    outs: Annotated[
        list[Path], typer.Argument(help="results: folders, report.json or bench.json", show_default=False)
    ],
    against: Against = None,
    page: Annotated[Path | None, typer.Option(help="also write an HTML page to this file")] = None,
    as_json: Json = False,
) -> None:
    """Put results side by side: quality, size, speed, memory, what their recipes differ in, the same prompts."""
    _check_page(page)
    from secateur.analysis.compare import compare as look
    from secateur.report.compare import print_comparison, render

    found = look(outs, against)
    if page is not None:
        page.write_text(render(found), encoding="utf-8")
    print(json.dumps(found, indent=1)) if as_json else print_comparison(found, page)


def _check_page(page: Path | None) -> None:
    """Nothing is overwritten, and a folder that isn't there is no place for a page."""
    if page is not None and page.exists():
        raise InputError(f"{page}: exists already; choose another --page")
    if page is not None and not page.parent.is_dir():
        raise InputError(f"{page.parent}: no such folder for --page")
