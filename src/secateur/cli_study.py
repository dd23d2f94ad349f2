"""Commands that look and don't cut: why units went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the commands of this file to the command line."""
    app.command()(explain)


def explain(
    out: Annotated[Path, typer.Argument(help="output folder of a finished prune", show_default=False)],
    layer: Annotated[int | None, typer.Option(help="one layer, with each of its removed units")] = None,
    unit: Annotated[int | None, typer.Option(help="one unit of that layer, removed or kept")] = None,
    site: Annotated[str | None, typer.Option(help="channel, query_head or kv_group, where several were cut")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, no tables")] = False,
) -> None:
    """Say why units went: what the kept ones know of them, who knows it, on which text they were largest."""
    from secateur.reasons import explain as look
    from secateur.report.explained import print_explanation

    found = look(out, layer, unit, site)
    print(json.dumps(found, indent=1)) if as_json else print_explanation(found)
