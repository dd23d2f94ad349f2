"""The steps of a gradual run: the same rows for the page, the card and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.report import facts
from secateur.report import numbers as fmt
from secateur.report.curve import Curve, draw
from secateur.report.facts import Report
from secateur.report.terminal.table import Column, Table

HEAD = ("step", "of what goes", "parameters", "not zero", "perplexity", "after recovery")


def head(report: Report) -> tuple[str, ...]:
    """Column names; empty where the run wasn't gradual."""
    steps = facts.items(report, "steps")
    if not steps:
        return ()
    return HEAD if any(_measured(step, "recovered") is not None for step in steps) else HEAD[:-1]


def rows(report: Report) -> list[tuple[str, ...]]:
    """One for the original model, and one for what each step has left."""
    columns, steps = len(head(report)), facts.items(report, "steps")
    measured = [_measured(step, *states) for states in (("original", "pruned"), ("recovered",)) for step in steps]
    shown = fmt.numbers(measured)
    return [
        (
            fmt.count(step.get("step")),
            fmt.percent(step.get("share")),
            fmt.count(step.get("parameters")),
            fmt.count(step.get("nonzero_parameters")),
            shown[n],
            shown[n + len(steps)],
        )[:columns]
        for n, step in enumerate(steps)
    ]


def curve(report: Report) -> Curve | None:
    """Perplexity as pruned (empty without recoveries) and as the next step begins; None where it wasn't measured."""
    steps = facts.items(report, "steps")
    pruned = [(step["step"], _measured(step, "original", "pruned")) for step in steps]
    left = [(step["step"], _measured(step, "recovered", "original", "pruned")) for step in steps]
    if len(steps) < 3 or any(value is None for _, value in (*pruned, *left)):
        return None
    first = pruned if len(head(report)) == len(HEAD) else []
    return draw(first, left, "step", logarithmic=True)  # type: ignore[arg-type]  # None was ruled out above


def markdown(report: Report) -> str:
    """The card's section; empty where the run wasn't gradual."""
    names = head(report)
    if not names:
        return ""
    lines = ["## Step by step", "", f"| {' | '.join(names)} |", "|" + "---:|" * len(names)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows(report))])


def steps_table(report: Report) -> Table | None:
    """For the terminal."""
    names = head(report)
    if not names:
        return None
    table = Table(*(Column(name, right=True) for name in names))
    for row in rows(report):
        table.add_row(*row)
    return table


def _measured(step: Mapping[str, Any], *states: str) -> float | None:
    """The perplexity of the first of these states that was measured."""
    found = facts.section(step, "perplexity")
    return next((float(found[state]) for state in states if fmt.is_number(found.get(state))), None)
