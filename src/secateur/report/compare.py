"""What `secateur compare` shows: one table and one page, from the same cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from secateur.report import numbers as fmt
from secateur.report.html.page import environment
from secateur.report.terminal.console import Console
from secateur.report.terminal.table import Table, figures

Facts = Mapping[str, Any]
MARK = "★"
PARETO = "no other result is as good in all of these and better in one"


def head(found: Facts) -> list[str]:
    """The columns: a result each, marked where none beats it everywhere."""
    marked = [f"{MARK} {r['name']}" if r["pareto"] else str(r["name"]) for r in found["results"]]
    return ["", *marked]


def lines(found: Facts) -> list[list[str]]:
    """A line for each measure: the values, with what they are beside the reference's where there is one."""
    reference = next((result for result in found["results"] if result["reference"]), None)
    return [[str(measure["label"]), *cells(measure, found["results"], reference)] for measure in found["measures"]]


def cells(measure: Facts, results: Sequence[Facts], reference: Facts | None) -> list[str]:
    """What each result has of a measure, with one precision, and beside what it's compared with."""
    key = measure["key"]
    numbers = fmt.numbers(result["values"].get(key) for result in results)
    others = [
        None if reference is None or result is reference else reference["values"].get(key) for result in results
    ]
    return [_cell(measure, *parts) for parts in zip(results, others, numbers, strict=True)]


def _cell(measure: Facts, result: Facts, other: float | None, number: str) -> str:
    """A value, its standard error, and beside a reference the difference of accuracies, else the ratio.

    Args:
        number: the value with the precision of its line.
    """
    value = result["values"].get(measure["key"])
    if value is None:
        return fmt.MISSING
    if measure["kind"] == "quality" and measure["better"] > 0:
        error = result["stderr"].get(measure["key"])
        spread = f" ± {100 * error:.2f}" if error is not None else ""
        return f"{100 * value:.2f}%{spread}" + ("" if other is None else f" ({100 * (value - other):+.2f})")
    if "bytes" in measure["key"]:
        number = fmt.size(value)
    elif measure["kind"] == "size":
        number = fmt.count(value)
    return number + (f" ({fmt.ratio(value / other)})" if other else "")


def recipe_lines(found: Facts) -> list[list[str]]:
    """Settings that differ."""
    return [[key, *(fmt.text(_spelled(value)) for value in values)] for key, values in found["recipes"].items()]


def _spelled(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}:{part}" for key, part in value.items())
    return value


def judged_line(found: Facts) -> str:
    """What the marks mean; empty where there's nothing to judge by."""
    labels = {measure["key"]: measure["label"] for measure in found["measures"]}
    names = ", ".join(str(labels[key]) for key in found["judged_by"])
    return f"{MARK} {PARETO}: {names}" if names else ""


def print_comparison(found: Facts, page: Path | None = None, console: Console | None = None) -> None:
    """The table on the terminal, settings that differ, and the same prompts."""
    console = console or Console(markup=False, highlight=False)
    console.print(_table(head(found), lines(found)))
    if found["judged_by"]:
        console.print(judged_line(found), style="dim")
    if found["recipes"]:
        console.print("\nSettings that differ", style="bold")
        console.print(_table(["", *(str(r["name"]) for r in found["results"])], recipe_lines(found)))
    for sample in found["samples"]:
        console.print(Text("\n" + str(sample["prompt"]), "dim"))
        for result, text in zip(found["results"], sample["texts"], strict=True):
            console.print(Text(f"{result['name']}: ", "bold") + Text(fmt.text(text)))
    for note in found["notes"]:
        console.print(f"note: {note}", style="yellow")
    if page is not None:
        console.print(f"\nThe page is {page}", soft_wrap=True)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = figures(*names)
    for row in rows:
        table.add_row(*row)
    return table


def render(found: Facts) -> str:
    """One HTML page without scripts that fetches nothing; everything in it is escaped."""
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            found=found,
            head=head(found),
            lines=lines(found),
            recipe_lines=recipe_lines(found),
            judged=judged_line(found),
            names=[result["name"] for result in found["results"]],
            missing=fmt.MISSING,
        )
    )
