"""What `secateur prune` shows when it's done."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.text import Text

from secateur.report import facts, tasks
from secateur.report import numbers as fmt
from secateur.report.compared import load_warning
from secateur.report.facts import Report
from secateur.report.recovery import recovery_table, sentence
from secateur.report.steps import steps_table
from secateur.report.terminal.console import Console
from secateur.report.terminal.export import proved
from secateur.report.terminal.table import Column, Table

_STYLE = {"better": "green", "worse": "red", "same": "dim"}


def print_report(report: Report, out: Path | str, console: Console | None = None) -> None:
    """Cuts, before and after, warnings, and where to look."""
    console = console or Console()
    console.print(f"\n[bold]{escape(facts.sentence(report))}[/bold]", highlight=False)
    console.print(_cuts(report))
    rows = facts.comparison(report)
    if rows:
        right = (Column(name, right=True) for name in ("before", "after", "ratio"))
        table = Table("", *right, Column("", drop=1))
        for row in rows:
            ratio = Text(row.ratio, _STYLE.get(row.verdict, ""))
            table.add_row(row.label, row.before, row.after, ratio, Text(row.note, "dim"))
        warning = load_warning(facts.section(report, "evaluation", "after"))
        if warning is not None:
            console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False)
        console.print(table)
        data = facts.section(report, "evaluation").get("data")
        if data:
            console.print(f"measured on {escape(str(data))}", style="dim", highlight=False)
    steps = steps_table(report)
    if steps is not None:
        console.print()
        console.print(steps)
    recovered = recovery_table(report)
    if recovered is not None:
        console.print(f"\nrecovery: {sentence(report)}", markup=False, highlight=False)
        console.print(recovered)
    tasks.print_tasks(report, console)
    for warning in report.get("warnings") or ():
        console.print(f"[yellow]note:[/yellow] {escape(str(warning))}", highlight=False)
    if report.get("dry_run"):
        console.print(f"\nDry run: the plan is {out}/plan.json; --plan replays it.", highlight=False, soft_wrap=True)
        return
    gate = facts.section(report, "gate")
    if gate:
        console.print(f"reloads with {gate.get('how')}, same logits", style="dim", highlight=False)
    export = facts.section(report, "export")
    if export:
        told = proved(export["client"]) if export.get("client") else "loaded and compared"
        console.print(f"{out}/export is for {export.get('architecture')}: {told}", style="dim", highlight=False)
    console.print(f"\nThe model is in {out}, the report is {out}/report.html", highlight=False, soft_wrap=True)


def _cuts(report: Report) -> Table:
    errors = (Column("error before refit", right=True, drop=2), Column("after", right=True, drop=2))
    table = Table("cut", Column("removed", right=True), Column("left", right=True), *errors, Column("method", drop=1))
    for name, tally in facts.by_kind(report).items():
        left = f"{fmt.count(tally.total('kept'))} of {fmt.count(tally.total('units'))}"
        found = (tally.mean("error_before_refit"), tally.mean("error_after_refit"))
        table.add_row(name, fmt.percent(tally.sparsity), left, *found, tally.names("method"))
    return table
