"""What `secateur sweep` shows: its trials before it begins, and what has come of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.report import numbers as fmt
from secateur.report.compare import MARK, cells, judged_line
from secateur.report.terminal.console import Console, plain
from secateur.report.terminal.table import Column, Table

Facts = Mapping[str, Any]
MOST_MEASURES = 8
PERPLEXITY = "perplexity"
BEFORE = {"new": "to do", "interrupted": "goes on", "done": "done", "other": "begins anew"}


def print_trials(trials: Sequence[Facts], console: Console | None = None) -> None:
    """The trials of a sweep that isn't run: name, state, and what each says beside the base."""
    console = plain(console)
    table = Table("trial", "state", Column("settings", wraps=30, drop=1))
    for trial in trials:
        settings = ", ".join(f"{key}: {_spelled(value)}" for key, value in trial["changes"].items())
        table.add_row(str(trial["name"]), BEFORE[trial["state"]], settings)
    console.print(table)
    count = sum(trial["state"] != "done" for trial in trials)
    console.print(f"{count} of {len(trials)} trials would be run", style="dim")


def _spelled(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else fmt.text(value)


def print_sweep(found: Facts, out: Path, console: Console | None = None) -> None:
    """A row for each trial: what it has come to; then why others have failed."""
    console = plain(console)
    comparison: Facts = found.get("comparison") or {"results": [], "measures": [], "judged_by": []}
    results = {result["name"]: result for result in comparison["results"] if not result["reference"]}
    reference = next((result for result in comparison["results"] if result["reference"]), None)
    measures = [m for m in comparison["measures"] if m["kind"] in ("quality", "size")][:MOST_MEASURES]
    table = Table("trial", *_columns(measures, comparison["judged_by"]), Column("time", right=True, drop=1))
    columns = [cells(measure, comparison["results"], reference) for measure in measures]
    shown = {one["name"]: [column[n] for column in columns] for n, one in enumerate(comparison["results"])}
    if reference is not None:
        table.add_row(str(reference["name"]), *shown[reference["name"]], "")
    for trial in found["trials"]:
        result = results.get(trial["name"])
        if result is None:
            table.add_row(str(trial["name"]), *["failed" if m is measures[0] else "" for m in measures], "")
            continue
        name = f"{MARK} {trial['name']}" if result["pareto"] else str(trial["name"])
        table.add_row(name, *shown[trial["name"]], fmt.seconds(trial["seconds"]))
    console.print(table)
    if comparison["judged_by"]:
        console.print(judged_line(comparison), style="dim")
    for trial in found["trials"]:
        if trial["error"] is not None:
            console.print(f"failed: {trial['name']}: {trial['error']}", style="yellow", soft_wrap=True)
    _print_end(found, out, console)


def _columns(measures: Sequence[Facts], judged_by: Sequence[str]) -> list[Column]:
    """Those that results are judged by stay however narrow the terminal is; the line below says on which text."""
    texts = sum(str(m["label"]).startswith(PERPLEXITY) for m in measures)
    names = [PERPLEXITY if texts == 1 and str(m["label"]).startswith(PERPLEXITY) else m["label"] for m in measures]
    return [
        Column(str(name), right=True, drop=0 if m["key"] in judged_by else index)
        for index, (name, m) in enumerate(zip(names, measures, strict=True), 2)
    ]


def _print_end(found: Facts, out: Path, console: Console) -> None:
    failed = sum(trial["state"] == "failed" for trial in found["trials"])
    ran = sum(trial["ran"] for trial in found["trials"])
    total = len(found["trials"])
    told = [f"{total - failed} of {total} trials are done", *([f"{failed} failed"] if failed else [])]
    told += [f"{total - ran} were done before"] if ran < total else []
    console.print("\n" + ", ".join(told), soft_wrap=True)
    if failed:
        console.print("the same command runs those again that failed", soft_wrap=True)
    if "comparison" in found:
        console.print(f"the page is {out / 'compare.html'}", soft_wrap=True)
    console.print(f"all figures are in {out / 'sweep.json'}", soft_wrap=True)
