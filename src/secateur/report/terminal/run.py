"""What `secateur prune` shows when it's done."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from secateur.report import facts
from secateur.report import numbers as fmt
from secateur.report.compared import load_warning
from secateur.report.facts import Report
from secateur.report.recovery import recovery_table, sentence
from secateur.report.steps import steps_table
from secateur.report.terminal.console import Console

_STYLE = {"better": "green", "worse": "red", "same": "dim"}


def print_report(report: Report, out: Path | str, console: Console | None = None) -> None:
    """Cuts, before and after, warnings, and where to look."""
    console = console or Console()
    console.print(f"\n[bold]{escape(facts.sentence(report))}[/bold]", highlight=False)
    console.print(_cuts(report))
    rows = facts.comparison(report)
    if rows:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("")
        for name in ("before", "after", "ratio"):
            table.add_column(name, justify="right")
        table.add_column("", style="dim")
        for row in rows:
            ratio = f"[{_STYLE.get(row.verdict, 'none')}]{row.ratio}[/]"
            table.add_row(row.label, row.before, row.after, ratio, row.note)
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
    for warning in report.get("warnings") or ():
        console.print(f"[yellow]note:[/yellow] {escape(str(warning))}", highlight=False)
    if report.get("dry_run"):
        console.print(f"\nDry run: the plan is {out}/plan.json; --plan replays it.", highlight=False, soft_wrap=True)
        return
    gate = facts.section(report, "gate")
    if gate:
        console.print(f"reloads with {gate.get('how')}, same logits", style="dim", highlight=False)
    console.print(f"\nThe model is in {out}, the report is {out}/report.html", highlight=False, soft_wrap=True)


def _cuts(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cut")
    for name in ("removed", "left", "error before refit", "after"):
        table.add_column(name, justify="right")
    table.add_column("method")
    for name, tally in facts.by_kind(report).items():
        left = f"{fmt.count(tally.total('kept'))} of {fmt.count(tally.total('units'))}"
        errors = (tally.mean("error_before_refit"), tally.mean("error_after_refit"))
        numbers = (fmt.percent(tally.sparsity), left, *(fmt.number(error) for error in errors))
        table.add_row(name, *numbers, tally.names("method"))
    return table
