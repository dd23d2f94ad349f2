"""What `secateur eval --tasks` shows: each task's metrics, beside those of a reference with what tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from secateur.report import numbers as fmt
from secateur.report.terminal.console import Console
from secateur.report.terminal.tables import _console, _right, _section, _table

Facts = Mapping[str, Any]
SURE = 0.05  # p below which a difference is coloured


def print_tasks(found: Facts, console: Console | None = None) -> None:
    """One line a metric: value ± standard error; with a reference also the difference, its error, and p."""
    console = _console(console)
    reference: Facts | None = found.get("reference")
    if "perplexity" not in found:  # else both were named above their figures on text
        console.print(Text("model    "), Text(str(found["model"]), "bold"))
        if reference is not None:
            console.print(Text("reference"), Text(str(reference["model"]), "bold"))
    extra = ("reference", "difference", "p") if reference is not None else ("chance",)
    table = _table("task", "items", "metric", "model", *extra)
    _right(table)
    table.columns[2].justify = "left"
    for name, task in found["tasks"].items():
        for metric, figures in task["metrics"].items():
            row: list[str | Text] = [name, fmt.count(task["items"]), metric, shown(metric, figures)]
            if reference is None:
                own = metric == task["metric"]
                row.append(fmt.percent(task["chance"]) if own and task["chance"] is not None else "")
            else:
                other = reference["tasks"][name]["metrics"].get(metric)
                told = found["differences"].get(name, {}).get(metric)
                row += [shown(metric, other) if other else fmt.MISSING, *_difference(metric, told)]
            table.add_row(*row)
    _section(console, None, table)
    console.print()
    console.print(f"{found['dtype']} on {found['device']}, {fmt.threads(found['threads'])}", style="dim")
    if reference is not None:
        said = "p: exact sign test over the items (McNemar's, where an item is right or wrong); "
        console.print(f"{said}±: standard error", style="dim")
    for note in found.get("notes", ()) if "perplexity" not in found else ():
        console.print(f"note: {note}")


def shown(metric: str, figures: Facts) -> str:
    """A value with its standard error: accuracies as percentages."""
    value, error = figures["value"], figures["stderr"]
    if metric == "perplexity" or not fmt.is_number(value) or not 0 <= value <= 1:
        return fmt.number(value) + (f" ± {fmt.number(error)}" if error is not None else "")
    return f"{100 * value:.2f}%" + (f" ± {100 * error:.2f}" if error is not None else "")


def _difference(metric: str, told: Facts | None) -> list[str | Text]:
    """What tells two models apart: points of accuracy, or nats an item."""
    if told is None:
        return [fmt.MISSING, fmt.MISSING]
    scale, unit = (1.0, " nats") if metric == "perplexity" else (100.0, "")
    error = f" ± {scale * told['stderr']:.2f}" if told["stderr"] is not None else ""
    text = f"{scale * told['difference']:+.2f}{error}{unit}"
    colour = ("green" if told["difference"] > 0 else "red") if told["p"] < SURE else "dim"
    return [Text(text, colour), f"{told['p']:.2g}"]
