"""Commands that look and don't cut: why units went, and what cutting each site would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from secateur.errors import InputError


def register(app: typer.Typer) -> None:
    """Adds the commands of this file to the command line."""
    app.command()(explain)
    app.command()(sensitivity)


def explain(
    out: Annotated[Path, typer.Argument(help="output folder of a finished prune", show_default=False)],
    layer: Annotated[int | None, typer.Option(help="one layer, with each of its removed units")] = None,
    unit: Annotated[int | None, typer.Option(help="one unit of that layer, removed or kept")] = None,
    site: Annotated[str | None, typer.Option(help="channel, query_head or kv_group, where several were cut")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, no tables")] = False,
) -> None:
    """Say why units went: what the kept ones know of them, who knows it, on which text they were largest."""
    from secateur.analysis.explain import explain as look
    from secateur.report.terminal.explained import print_explanation

    found = look(out, layer, unit, site)
    print(json.dumps(found, indent=1)) if as_json else print_explanation(found)


def sensitivity(
    model: Annotated[str, typer.Argument(help="model folder, 'embedded', or a hub id", show_default=False)],
    calibrate: Annotated[str, typer.Option(help="text to measure on, as for prune")] = "stdlib",
    sites: Annotated[
        str, typer.Option(help="kinds of sites: weight, channel, query_head, kv_group, expert; commas")
    ] = "channel,query_head,kv_group,weight",
    method: Annotated[str | None, typer.Option("--method", "-m", help="as for prune")] = None,
    levels: Annotated[str, typer.Option(help="fractions that are cut, with commas")] = "0.25,0.5,0.75",
    samples: Annotated[int, typer.Option(help="sequences, 16 at most")] = 16,
    length: Annotated[int, typer.Option(help="tokens per sequence")] = 512,
    seed: Annotated[int, typer.Option(help="of the draw of sequences")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="of the computation")] = "auto",
    page: Annotated[Path | None, typer.Option(help="also write the heat map as an HTML page to this file")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress display")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, no tables")] = False,
) -> None:
    """Measure what cutting each site alone does to the model's predictions: a table and a heat map."""
    from secateur.analysis.sensitivity import sensitivity as measure
    from secateur.config.parsing import fraction
    from secateur.report.html.sensitivity import print_sensitivity, write_page

    if page is not None and page.exists():
        raise InputError(f"{page}: exists already; choose another --page")
    if page is not None and not page.parent.is_dir():
        raise InputError(f"{page.parent}: no such folder for --page")
    try:
        chosen = tuple(fraction(part) for part in levels.split(","))
    except ValueError:
        raise InputError(f"levels {levels}: give fractions with commas, such as 0.25,0.5") from None
    methods = () if method is None else tuple(method.split(","))
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
