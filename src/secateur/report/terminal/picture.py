"""A finished run at a glance, in letters: was it worth it, before and after as bars, where units went."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from secateur.report import facts
from secateur.report import numbers as fmt
from secateur.report.compared import METRICS, Row
from secateur.report.facts import Report, Tally
from secateur.report.terminal.console import Console
from secateur.report.verdict import verdict

SHOWN = (
    "perplexity",
    "parameters",
    "nonzero_parameters",
    "bytes_on_disk",
    "decode_tokens_per_s",
    "peak_memory_bytes",
)
EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
MOST = 40  # letters of the longest bar
STYLE = {"better": "green", "worse": "red"}


def print_picture(report: Report, out: Path | str, console: Console | None = None) -> None:
    """A sentence, a pair of bars for each figure, small bars for each kind of cut, and where the page is."""
    console = console or Console(markup=False, highlight=False)
    console.print()
    console.print(Text(f"{facts.title(report)}: {facts.sentence(report)}", "bold"))
    found = verdict(report)
    if found is not None:
        console.print(Text(f"{found.judgement}. ", STYLE.get(found.word, "bold")) + Text(found.why))
    console.print()
    for line in [*_pairs(report, console.width), *_layers(report, console.width)]:
        console.print(line, soft_wrap=True)
    page = Path(out) / "report.html"
    if page.is_file():
        console.print(f"\nThe page with all of it: {page}", soft_wrap=True)


def _pairs(report: Report, width: int) -> list[Text]:
    """Two bars for each figure, the longer one of full length."""
    rows = {row.key: row for row in facts.comparison(report)}
    kept = [m for m in METRICS if m.key in SHOWN and m.key in rows and rows[m.key].ratio != fmt.MISSING]
    if {"parameters", "nonzero_parameters"} <= rows.keys() and _same(rows["parameters"], rows["nonzero_parameters"]):
        kept = [m for m in kept if m.key != "nonzero_parameters"]
    if not kept:
        return []
    names = max(len(m.label) for m in kept) + 2
    tails = {m.key: f" {rows[m.key].after} {rows[m.key].ratio}{_noted(rows[m.key].note)}" for m in kept}
    widest = max(len(tail) for tail in (*tails.values(), *(f" {rows[m.key].before}" for m in kept)))
    room = max(4, min(MOST, width - names - widest))
    lines = []
    for metric in kept:
        row = rows[metric.key]
        before, after = (facts.measured(report, side, metric.key) for side in ("before", "after"))
        longest = max(before, after)
        style = STYLE.get(row.verdict, "")
        first = Text(f"{metric.label:<{names}}") + Text(bar(before / longest, room), "dim") + f" {row.before}"
        second = Text(" " * names) + Text(bar(after / longest, room), style) + Text(tails[metric.key], style)
        lines += [first, second]
    return lines


def _same(one: Row, other: Row) -> bool:
    """Whether two rows say the same at a glance, but for a stray zero among millions of weights."""
    return (one.ratio, one.verdict) == (other.ratio, other.verdict)


def _noted(note: str) -> str:
    return f" ({note})" if note else ""


def _layers(report: Report, width: int) -> list[Text]:
    """For each kind of cut a letter a layer: how much of it went, and by how much its output is off since."""
    lines: list[Text] = []
    for name, tally in facts.by_kind(report).items():
        cells = facts.group([s for s in tally.sites if isinstance(s.get("layer"), int)], lambda s: s["layer"])
        if not cells:
            continue
        ordered = [cells[layer] for layer in sorted(cells)]
        gone = [cell.sparsity or 0.0 for cell in ordered]
        line = (
            Text(f"{name}, by layer  ") + Text(levels(gone, 1.0), "yellow") + f"  {fmt.percent(tally.sparsity)} gone"
        )
        errors = [_error(cell) for cell in ordered]
        if any(errors):
            line += Text("   error  ", "dim") + Text(levels(errors, max(errors)), "cyan")
            line += f"  up to {fmt.number(max(errors))}"
        lines.append(line)
    return [Text(""), *[line for line in lines if line.cell_len <= width]] if lines else []


def _error(cell: Tally) -> float:
    after = cell.mean("error_after_refit")
    return (cell.mean("error_before_refit") if after is None else after) or 0.0


def bar(share: float, room: int) -> str:
    """A bar of `share` of so many letters, to an eighth of one.

    >>> bar(0.5, 3)
    '█▌'
    """
    eighths = round(max(0.0, min(1.0, share)) * room * 8)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def levels(values: list[float], top: float) -> str:
    """A letter for each value, as high as its share of `top`.

    >>> levels([0, 0.5, 1], 1.0)
    '▁▅█'
    """
    return "".join(
        LEVELS[round(max(0.0, min(1.0, value / top if top else 0.0)) * (len(LEVELS) - 1))] for value in values
    )
