"""Before and after on tasks, and what suffered first: the same rows for the page, the card and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.report import facts
from secateur.report import numbers as fmt
from secateur.report.facts import Report
from secateur.report.terminal.console import Console
from secateur.report.terminal.table import Table, figures

SURE = 0.05  # p below which a difference isn't put down to chance
STATES = ("before", "pruned", "after")
RANKING = (
    "What suffered first: the part of the original's lead over chance that is gone, with its 95 % interval. Chance "
    "is a blind guess, of a text every token alike. p: exact sign test over the items."
)


def head(report: Report) -> list[str]:
    """The columns of the table of tasks; empty without one."""
    found = facts.section(report, "tasks")
    return (
        ["Task", "Items", "Metric", *(s.capitalize() for s in STATES if s in found), "Difference", "p"]
        if found
        else []
    )


def rows(report: Report) -> list[tuple[str, ...]]:
    """A line for each metric of each task."""
    found = facts.section(report, "tasks")
    sides = [facts.section(found, state) for state in STATES if state in found]
    lines = []
    for name, task in facts.section(found, "before").items():
        for metric in facts.section(task, "metrics"):
            values = [shown(metric, facts.section(side, name, "metrics", metric)) for side in sides]
            told = difference(metric, facts.section(found, "differences", name, metric))
            lines.append((str(name), fmt.count(task.get("items")), str(metric), *values, *told))
    return lines


def shown(metric: str, figures: Mapping[str, Any]) -> str:
    """A value with its standard error: accuracies as percentages."""
    value: Any = figures.get("value")
    error: Any = figures.get("stderr")
    if not fmt.is_number(value):
        return fmt.MISSING
    scale = 1.0 if metric == "perplexity" or not 0 <= value <= 1 else 100.0
    unit = "" if scale == 1.0 else "%"
    number = fmt.number(value) if scale == 1.0 else f"{scale * value:.2f}"
    return f"{number}{unit}" + (f" ± {fmt.number(scale * error)}" if fmt.is_number(error) else "")


def _any(found: Mapping[str, Any], key: str) -> Any:
    return found.get(key)


def difference(metric: str, told: Mapping[str, Any]) -> tuple[str, str]:
    """What tells two models apart (points of accuracy, or nats an item), and p."""
    value, error, p = (_any(told, key) for key in ("difference", "stderr", "p"))
    if not fmt.is_number(value):
        return fmt.MISSING, fmt.MISSING
    scale, unit = (1.0, " nats") if metric == "perplexity" else (100.0, "")
    spread = f" ± {scale * error:.2f}" if fmt.is_number(error) else ""
    return f"{scale * value:+.2f}{spread}{unit}", f"{p:.2g}" if fmt.is_number(p) else fmt.MISSING


def ranking(report: Report) -> list[tuple[str, ...]]:
    """(name, kind, before, after, loss, interval, p), the largest loss first."""
    lines = []
    for row in facts.items(facts.section(report, "tasks"), "suffered"):
        metric = str(row.get("metric"))
        values = [shown(metric, {"value": row.get(side)}) for side in ("before", "after")]
        low, high, p = (row.get(key) for key in ("low", "high", "p"))
        span = f"{fmt.percent(low)} to {fmt.percent(high)}" if fmt.is_number(low) else fmt.MISSING
        loss = fmt.percent(row.get("loss")) if row.get("loss") is not None else "no lead"
        lines.append(
            (
                str(row.get("name")),
                str(row.get("kind")),
                *values,
                loss,
                span,
                f"{p:.2g}" if fmt.is_number(p) else fmt.MISSING,
            )
        )
    return lines


RANKING_HEAD = ("", "Kind", "Before", "After", "Lost", "95 % interval", "p")


def markdown(report: Report) -> str:
    """The card's section; empty without tasks."""
    if not head(report):
        return ""
    parts = ["## Tasks", "", *_markdown(tuple(head(report)), rows(report))]
    return "\n".join([*parts, "", RANKING, "", *_markdown(RANKING_HEAD, ranking(report))])


def _markdown(names: tuple[str, ...], lines: list[tuple[str, ...]]) -> list[str]:
    rule = "|".join(["---", *("---:" for _ in names[1:])])
    cells = (tuple(cell.replace("|", "\\|").replace("<", "&lt;") for cell in line) for line in lines)
    return [f"| {' | '.join(names)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in cells)]


def print_tasks(report: Report, console: Console) -> None:
    """On the terminal: the tasks, and what suffered first; nothing without tasks."""
    if not head(report):
        return
    console.print()
    console.print(_table(tuple(head(report)), rows(report)))
    console.print()
    console.print(_table(RANKING_HEAD, ranking(report)))
    console.print(RANKING, style="dim", markup=False, highlight=False)


def _table(names: tuple[str, ...], lines: list[tuple[str, ...]]) -> Table:
    table = figures(*(name.lower() for name in names))
    for line in lines:
        table.add_row(*line)
    return table
