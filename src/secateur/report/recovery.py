"""What a training after pruning has won back: the same rows for the page, the card and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.report import facts, tasks
from secateur.report import numbers as fmt
from secateur.report.curve import Curve, draw
from secateur.report.facts import Report
from secateur.report.terminal.console import Console
from secateur.report.terminal.table import Table, figures


@dataclass(frozen=True)
class Line:
    """A figure of the original, the pruned and the recovered model."""

    label: str
    values: tuple[str, ...]


def states(report: Report) -> list[str]:
    """Which models were measured, in order: original, pruned, recovered."""
    found = facts.items(facts.section(report, "recovery"), "states")
    return [str(state.get("state")) for state in found] or list(facts.section(report, "recovery", "agreement"))


def lines(report: Report) -> list[Line]:
    """Perplexity and bits per byte of each state, and perplexity on each text where there are several; of models
    without one how far each agrees with the original."""
    alike = facts.section(report, "recovery", "agreement")
    if alike:
        texts = list(facts.section(alike, next(iter(alike))))
        return [
            Line(
                facts.agreement_label(facts.section(alike, "recovered", name), name),
                tuple(facts.alike(facts.section(alike, state, name)) for state in alike),
            )
            for name in texts
        ]
    found = facts.items(facts.section(report, "recovery"), "states")
    if not found:
        return []
    rows = [
        Line(label, tuple(fmt.numbers(state.get(key) for state in found)))
        for key, label in (("perplexity", "Perplexity"), ("bits_per_byte", "Bits per byte"))
    ]
    names = list(facts.section(found[0], "sets"))
    for name in names if len(names) > 1 else ():
        rows.append(Line(name, tuple(fmt.numbers(facts.section(state, "sets").get(name) for state in found))))
    return rows


def sentence(report: Report) -> str:
    """How it was trained, in one line; empty without a recovery."""
    r = facts.section(report, "recovery")
    if not r:
        return ""
    losses = " + ".join(name if weight == 1 else f"{fmt.number(weight)} {name}" for name, weight in _mix(r).items())
    rate = f", rate {fmt.number(r['learning_rate'])}" if r.get("learning_rate") else ""
    if r.get("kept_start"):
        kept = "; nothing was gained, the start was kept"
    else:
        kept = f"; best after step {fmt.count(r.get('best_step'))}"
    return (
        f"{r.get('how')} ({losses}), {fmt.count(r.get('steps'))} steps, {fmt.short(r.get('tokens'))} tokens of "
        f"{fmt.text(r.get('data'))}{rate}{kept}"
    )


def _mix(section: Mapping[str, Any]) -> Mapping[str, Any]:
    return facts.section(section, "loss")


def curve(report: Report) -> Curve | None:
    """The picture of the losses, or None where too little is known.

    The training loss is drawn where it is the same thing as the held-out one: language modelling alone.
    """
    section = facts.section(report, "recovery")
    points = facts.items(section, "curve")
    keys = ("loss", "held_out") if set(_mix(section)) == {"lm"} else ("held_out",)
    series = {k: [(p["step"], p[k]) for p in points if fmt.is_number(p.get(k))] for k in keys}
    series["held_out"].insert(0, (0, section.get("held_out_before") or 0.0))
    if len(series["held_out"]) < 3:
        return None
    return draw(series.get("loss", []), series["held_out"], "step")


def markdown(report: Report) -> str:
    """The card's section; empty without a recovery."""
    if not facts.section(report, "recovery"):
        return ""
    parts = ["## Recovery", "", f"Trained after pruning: {sentence(report)}."]
    found = lines(report)
    if found:
        parts += ["", f"| | {' | '.join(states(report))} |", f"|---|{'---:|' * len(states(report))}"]
        parts += [f"| {line.label} | {' | '.join(line.values)} |" for line in found]
    return "\n".join(parts)


def recovery_table(report: Report) -> Table | None:
    """For the terminal."""
    found = lines(report)
    if not found:
        return None
    table = figures("", *states(report))
    for line in found:
        table.add_row(line.label, *line.values)
    return table


def print_recovery(report: Report, out: Path | str, console: Console | None = None) -> None:
    """What `secateur recover` shows when it's done."""
    console = console or Console(markup=False)
    console.print(f"\n{sentence(report)}", style="bold", highlight=False)
    table = recovery_table(report)
    if table is not None:
        console.print(table)
        data = facts.section(report, "evaluation").get("data")
        if data is not None:
            console.print(f"measured on {data}", style="dim", highlight=False)
    r = facts.section(report, "recovery")
    if r.get("zeros_kept"):
        zeros = (
            f"all {fmt.count(r['zeros_kept'])} zeros of {fmt.count(r['masked_matrices'])} matrices are still zeros"
        )
        console.print(zeros, style="dim", highlight=False)
    tasks.print_tasks(report, console)
    for warning in report.get("warnings") or ():
        console.print(f"note: {warning}", highlight=False, style="yellow")
    console.print(
        f"reloads with {facts.section(report, 'gate').get('how')}, same logits", style="dim", highlight=False
    )
    what = "model" if r.get("merged") else "adapter"
    console.print(f"\nThe {what} is in {out}, the report is {out}/report.html", highlight=False, soft_wrap=True)


def print_forecast(report: Report, console: Console | None = None) -> None:
    """What `secateur recover --dry-run` shows."""
    console = console or Console(markup=False)
    found = facts.section(report, "forecast")
    table = Table("", "", header=False)
    for label, key, show in (
        ("tokens", "tokens", fmt.short),
        ("FLOPs", "flops", fmt.short),
        ("peak memory", "memory_bytes", fmt.size),
        ("a step", "seconds_per_step", fmt.seconds),
        ("in all", "seconds", fmt.seconds),
    ):
        table.add_row(label, show(found.get(key)))
    console.print(table)
