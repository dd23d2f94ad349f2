"""Options that several commands have, and the panels that their help is divided into."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from secateur.errors import InputError

cut = partial(typer.Option, rich_help_panel="What to cut")
repair = partial(typer.Option, rich_help_panel="Repair")
train = partial(typer.Option, rich_help_panel="Training")
learn = partial(typer.Option, rich_help_panel="What it learns")
text = partial(typer.Option, rich_help_panel="Data")
where = partial(typer.Option, rich_help_panel="Where it runs")
output = partial(typer.Option, rich_help_panel="Output")


def out_folder(name: str) -> Path:
    """A folder's name; as a `Path`, an empty one would be the folder that the user is in."""
    if not name.strip():
        raise InputError("--out is empty; give the name of a folder")
    return Path(name)


Out = Annotated[
    Path | None, output("--out", "-o", help="output folder (required)", parser=out_folder, metavar="PATH")
]
Json = Annotated[bool, output("--json", help="print one JSON object, no tables")]
Quiet = Annotated[bool, output("--quiet", "-q", help="no progress display")]
Overwrite = Annotated[bool, output("--overwrite", help="replace an earlier result in --out")]
Resume = Annotated[bool, output("--resume", help="go on with the interrupted run in --out")]
Device = Annotated[str, where(help="auto, cpu, cuda or cuda:N")]
Threads = Annotated[int | None, where(help="CPU threads")]
