"""What `secateur eval --tasks` shows: each task's metrics, beside those of a reference with what tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from secateur.report import numbers as fmt
from secateur.report.tasks import SURE, difference, shown
from secateur.report.terminal.console import Console, plain
from secateur.report.terminal.table import Column, Table, section

Facts = Mapping[str, Any]


def print_tasks(found: Facts, console: Console | None = None) -> None:
    """One line a metric: value ± standard error; with a reference also the difference, its error, and p."""
    console = plain(console)
    reference: Facts | None = found.get("reference")
    if "perplexity" not in found:  # else both were named above their figures on text
        console.print(Text("model    "), Text(str(found["model"]), "bold"))
        if reference is not None:
            console.print(Text("reference"), Text(str(reference["model"]), "bold"))
    extra = ("reference", "difference", "p") if reference is not None else ("chance",)
    right = (Column(name, right=True) for name in ("model", *extra))
    table = Table("task", Column("items", right=True, drop=1), "metric", *right)
    for name, task in found["tasks"].items():
        for metric, figures in task["metrics"].items():
            row: list[str | Text] = [name, fmt.count(task["items"]), metric, shown(metric, figures)]
            if reference is None:
                own = metric == task["metric"]
                row.append(fmt.percent(task["chance"]) if own and task["chance"] is not None else "")
            else:
                other = reference["tasks"][name]["metrics"].get(metric)
                told = found["differences"].get(name, {}).get(metric)
                row += [shown(metric, other or {}), *_coloured(metric, told or {})]
            table.add_row(*row)
    section(console, None, table)
    console.print()
    console.print(f"{found['dtype']} on {found['device']}, {fmt.threads(found['threads'])}", style="dim")
    if reference is not None:
        said = "p: exact sign test over the items (McNemar's, where an item is right or wrong); "
        console.print(f"{said}±: standard error", style="dim")
    for note in found.get("notes", ()) if "perplexity" not in found else ():
        console.print(f"note: {note}")


def _coloured(metric: str, told: Facts) -> list[str | Text]:
    apart, p = difference(metric, told)
    sure = fmt.is_number(told.get("p")) and told["p"] < SURE
    return [Text(apart, ("green" if told["difference"] > 0 else "red") if sure else "dim"), p]
