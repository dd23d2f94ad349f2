"""What `compress`, `decompress` and `bench` show: tables on a terminal, and the page of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from secateur.report import numbers as fmt
from secateur.report.html.page import environment
from secateur.report.samples import NO_DIFFERENCE, busy
from secateur.report.terminal.console import Console
from secateur.report.terminal.table import Cell, Column, Table

Facts = Mapping[str, Any]
_FULL, _BAR, _LANE = 80.0, 14.0, 42.0  # percent of the screen, pixels, pixels from one form to the next


def print_compression(found: Facts, console: Console | None = None) -> None:
    """What `secateur compress` and `decompress` show."""
    console = console or Console(markup=False, highlight=False)
    table = Table("", "", "", header=False)
    ratio = fmt.ratio(found["bytes_after"] / found["bytes_before"])
    table.add_row("weights", f"{fmt.size(found['bytes_before'])} → {fmt.size(found['bytes_after'])}", ratio)
    if "compressed" in found:
        before, after = found["matrix_bytes_before"], found["matrix_bytes_after"]
        table.add_row("sparse matrices", f"{fmt.size(before)} → {fmt.size(after)}", fmt.ratio(after / before))
        table.add_row("compressed", f"{found['compressed']} of {found['tensors']} tensors", "")
        table.add_row("zeros in them", fmt.percent(found["sparsity"]), "")
        if found["negative_zeros"]:
            told = f"{found['negative_zeros']:,} taken as zeros, the same number; --exact-bits keeps them"
            table.add_row("-0.0 among them", told, "")
    same = "bit for bit" if found.get("values", "keep") == "keep" else "int8 within half a step"
    table.add_row("read back", f"the same, {same}", "")
    console.print(table)
    for warning in found.get("warnings", []):
        console.print(f"note: {warning}")
    console.print(f"\n{found['out']} is ready ({fmt.seconds(found['seconds'])})")


def print_bench(found: Facts, console: Console | None = None) -> None:
    """What `secateur bench` shows: a sentence, one table, and what it was measured on."""
    console = console or Console(markup=False, highlight=False)
    warning = busy_then(found)
    if warning is not None:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    if found["headline"]:
        console.print(found["headline"], style="bold", soft_wrap=True)
        console.print()
    console.print(_figures(found["forms"]))
    console.print()
    for sentence in found["verdicts"]:
        console.print(sentence, soft_wrap=True)
    for note in [*left_out(found["forms"]), *found["notes"]]:
        console.print(f"note: {note}", soft_wrap=True)
    facts = found["machine"]
    kernels = facts["kernels"][0] if facts["kernels"] else "none"
    dtype = found["settings"]["dtype"]
    about = f"{facts['processor']}, {fmt.threads(facts['threads'])}, {dtype}, kernels: {kernels}"
    console.print(f"\n{about}; load before: {facts['load_before'][0]}", style="dim", soft_wrap=True)


def busy_then(found: Facts) -> str | None:
    """What to say on top where the machine did other things."""
    load = found["machine"].get("load_before") or [None]
    return busy(load[0], found["machine"].get("logical_cores"))


def _figures(forms: Sequence[Facts]) -> Table:
    """A row for each batch, context and form; memory and size stand with the form's first one."""
    first = forms[0]["name"] if forms else "first"
    energy = any(fmt.is_number(row.get("joules_per_token")) for form in forms for row in form["rows"])
    table = Table(
        Column("batch", right=True),
        Column("context", right=True),
        "form",
        Column("first token", right=True, drop=3),
        Column("prefill tok/s", right=True, drop=1),
        Column("decode tok/s", right=True),
        Column(f"× {first}", right=True),
        Column("verdict", drop=2),
        *([Column("J/token", right=True, drop=4)] if energy else []),
        Column("weights", right=True, drop=5),
        Column("peak memory", right=True, drop=6),
        Column("loads in", right=True, drop=8),
        Column("file", right=True, drop=7),
    )
    told: set[str] = set()
    for batch, context in places(forms):
        for form in forms:
            for row in form["rows"]:
                if (row["batch"], row["context"]) == (batch, context) and "skipped" not in row:
                    sizes = _sizes(form) if form["name"] not in told else [""] * 4
                    told.add(form["name"])
                    joules = [row.get("joules_per_token")] if energy else []
                    table.add_row(str(batch), str(context), form["name"], *_cells(row), *joules, *sizes)
    for form in forms:
        if form["name"] not in told:
            table.add_row("", "", form["name"], *[""] * (5 + energy), *_sizes(form))
    return table


def _sizes(form: Facts) -> list[str]:
    sizes = [fmt.size(form.get(key)) for key in ("resident_weight_bytes", "peak_memory_bytes")]
    return [*sizes, fmt.seconds(form.get("load_seconds")), fmt.size(form["bytes_on_disk"])]


def left_out(forms: Sequence[Facts]) -> list[str]:
    """Which rows weren't measured, and why; what holds for several forms is said once."""
    reasons: dict[tuple[int, int, str], list[str]] = {}
    for form in forms:
        for row in form["rows"]:
            if "skipped" in row:
                reasons.setdefault((row["batch"], row["context"], row["skipped"]), []).append(form["name"])
    return [
        f"batch {batch}, context {context} left out: {why}"
        + ("" if len(names) == len(forms) else f" ({', '.join(names)})")
        for (batch, context, why), names in reasons.items()
    ]


_STYLE = {"faster": "green", "slower": "red", NO_DIFFERENCE: "dim"}


def _cells(row: Facts) -> list[Cell]:
    verdict = str(row.get("verdict") or "")
    low, high = row.get("against_first_range") or (None, None)
    span = f" ({low:.2f} to {high:.2f})" if low is not None else ""
    times = fmt.ratio(row["against_first"]) + span if "against_first" in row else ""
    style = _STYLE.get(verdict, "")
    return [
        fmt.seconds(row["first_token_seconds"]),
        row["prefill_tokens_per_s"],
        row["decode_tokens_per_s"],
        Text(times, style),
        Text(verdict, style),
    ]


def places(forms: Sequence[Facts]) -> list[tuple[int, int]]:
    """Every (batch, context), in order."""
    return sorted({(row["batch"], row["context"]) for form in forms for row in form["rows"]})


@dataclass(frozen=True)
class Stroke:
    """One bar: a form's tokens a second, with the lowest and highest that were seen (from `low` to `high`).

    `width`, `low` and `high` are percentages of the screen, `y` pixels.
    """

    y: float
    width: float
    low: float
    high: float
    label: str
    value: str
    compressed: bool


@dataclass(frozen=True)
class SpeedChart:
    """Decoding speed of every form at one batch and context; bars begin at zero."""

    title: str
    height: float
    bar: float
    strokes: list[Stroke]


def charts(forms: Sequence[Facts]) -> list[SpeedChart]:
    """One chart for each batch and context that was measured, all on one scale."""
    measured = {
        place: [
            (form["name"], row)
            for form in forms
            for row in form["rows"]
            if (row["batch"], row["context"]) == place and "skipped" not in row
        ]
        for place in places(forms)
    }
    highest = max((max(_range(row)) for rows in measured.values() for _, row in rows), default=0.0) or 1.0
    room = _FULL / highest
    speeds = iter(fmt.numbers(row["decode_tokens_per_s"] for rows in measured.values() for _, row in rows))
    found = []
    for (batch, context), rows in measured.items():
        strokes = [_stroke(n, name, row, room, next(speeds)) for n, (name, row) in enumerate(rows)]
        if strokes:
            height = len(strokes) * _LANE
            found.append(SpeedChart(f"batch {batch}, context {context}", height, _BAR, strokes))
    return found


def _stroke(n: int, name: str, row: Facts, room: float, said: str) -> Stroke:
    low, high = (round(room * value, 2) for value in _range(row))
    width = round(room * row["decode_tokens_per_s"], 2)
    return Stroke(n * _LANE, width, low, high, name, said, name.startswith("compressed"))


def _range(row: Facts) -> tuple[float, float]:
    low, high = row.get("decode_range") or [row["decode_tokens_per_s"]] * 2
    return low, high


def bench_page(found: Facts) -> str:
    """bench.html: like the report of a run, one page without scripts that fetches nothing."""
    template = environment().get_template("bench.html.j2")
    rows = [(form, row) for form in found["forms"] for row in form["rows"]]
    machine = {name.replace("_", " "): _fact(name, value) for name, value in found["machine"].items()}
    return template.render(
        found=found, charts=charts(found["forms"]), rows=rows, machine=machine, busy=busy_then(found)
    )


def _fact(name: str, value: Any) -> str:
    """A fact about the machine as people read it."""
    if name.endswith("_bytes"):
        return fmt.size(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {part}" for key, part in value.items()) or "–"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(str(part) for part in value) or "–"
    return "–" if value is None else str(value)
