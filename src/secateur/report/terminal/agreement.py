"""What `secateur eval --against` shows of two models without a perplexity: how far they agree on each text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from secateur.report import numbers as fmt
from secateur.report.facts import AGREEMENT, alike
from secateur.report.terminal.console import Console, plain
from secateur.report.terminal.table import figures, section


def print_agreement(found: Mapping[str, Any], console: Console | None = None) -> None:
    """A line for each text."""
    console = plain(console)
    console.print(Text("model    "), Text(str(found["model"]), "bold"))
    console.print(Text("reference"), Text(str(found["against"]), "bold"))
    table = figures("text", "texts", "tokens", "mean", "lowest")
    for name, own in found["agreement"].items():
        lowest = alike({"metric": own["metric"], "value": own["lowest"]})
        table.add_row(name, fmt.count(own["items"]), fmt.count(own["tokens"]), alike(own), lowest)
    section(console, None, table)
    console.print()
    for own in list(found["agreement"].values())[:1]:
        pooled = f" ({own['pooling']} of the hidden states)" if "pooling" in own else ""
        console.print(Text(f"{AGREEMENT[own['metric']]}{pooled}; ±: standard error", "dim"))
    console.print(Text(f"{found['dtype']} on {found['device']}, {fmt.threads(found['threads'])}", "dim"))
    for note in found["notes"]:
        console.print(Text(f"note: {note}"))
