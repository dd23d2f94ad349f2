"""Options that several commands have, and the panels that their help is divided into."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

cut = partial(typer.Option, rich_help_panel="What to cut")
repair = partial(typer.Option, rich_help_panel="Repair")
train = partial(typer.Option, rich_help_panel="Training")
learn = partial(typer.Option, rich_help_panel="What it learns")
text = partial(typer.Option, rich_help_panel="Data")
where = partial(typer.Option, rich_help_panel="Where it runs")
output = partial(typer.Option, rich_help_panel="Output")

Json = Annotated[bool, output("--json", help="print one JSON object, no tables")]
Quiet = Annotated[bool, output("--quiet", "-q", help="no progress display")]
Overwrite = Annotated[bool, output("--overwrite", help="replace an earlier result in --out")]
Resume = Annotated[bool, output("--resume", help="go on with the interrupted run in --out")]
Device = Annotated[str, where(help="auto, cpu, cuda or cuda:N")]
Threads = Annotated[int | None, where(help="CPU threads")]
