"""What `inspect`, `eval`, `generate` and `methods` show on a terminal; the report of a run has its own file.

Every text that comes from outside (paths, prompts, model names) is printed as it is, never as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from secateur.report import numbers as fmt
from secateur.report.compared import compared, load_warning
from secateur.report.terminal.console import Console

Facts = Mapping[str, Any]


def print_anatomy(found: Facts, console: Console | None = None) -> None:
    """What `secateur inspect` shows."""
    console = _console(console)
    head = f"{found['dtype']}, {found['layers']} layers, hidden size {found['hidden_size']}"
    if found["context"] is not None:
        head += f", context {found['context']}"
    console.print(Text(f"{found['architecture']} ({found['model_type']})", "bold"), Text(head))
    _section(console, None, _sizes(found))
    _section(console, "What can be cut", _sites(found["sites"]))
    console.print()
    console.print(
        "Counts for all layers alike, which a stock class loads. † and layers that differ load with the modelling "
        "file that is saved beside the weights (trust_remote_code=True), or with secateur.load.",
        style="dim",
    )
    speed = _table("cut", "faster or smaller", "not")
    for row in found["speed"]:
        speed.add_row(row["kind"], row["speeds_up"], row["does_not"])
    _section(console, "What a cut speeds up", speed)


def _sizes(found: Facts) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_row("parameters", fmt.count(found["parameters"]))
    for part in found["parts"]:
        table.add_row(f"  {part['part']}", fmt.count(part["parameters"]), fmt.percent(part["share"]))
    share = found["linear_parameters"] / found["parameters"]
    table.add_row("in prunable matrices", fmt.count(found["linear_parameters"]), fmt.percent(share))
    table.add_row("weights on disk", fmt.size(found["bytes_on_disk"]))
    table.add_row("FLOPs per token", fmt.short(found["flops_per_token"]))
    if found["context"]:
        table.add_row("  at full context", fmt.short(found["flops_per_token_at_context"]))
    if found["kv_cache_bytes_per_token"]:
        table.add_row("KV cache per token", fmt.size(found["kv_cache_bytes_per_token"]), "16 bit")
    return table


def _sites(rows: Sequence[Facts]) -> Table:
    table = _table("site", "per layer", "weights each", "of model", "may keep", "hardware likes")
    for column in (2, 3):
        table.columns[column].justify = "right"
    for row in rows:
        table.add_row(
            row["kind"],
            row["per_layer"],
            fmt.count(row["params_per_unit"]),
            fmt.percent(row["share"]),
            row["legal"].replace("with modelling file", "†"),
            row["hardware"],
        )
    return table


_STYLE = {"better": "green", "worse": "red", "same": "dim"}
_METRICS: tuple[tuple[str, str, Any], ...] = (
    ("perplexity", "perplexity", fmt.number),
    ("bits_per_byte", "bits per byte", fmt.number),
    ("kl", "KL to the reference (nats)", fmt.number),
    ("tokens", "tokens evaluated", fmt.count),
    ("parameters", "parameters", fmt.count),
    ("nonzero_parameters", "non-zero parameters", fmt.count),
    ("bytes_on_disk", "weights on disk", fmt.size),
    ("prefill_tokens_per_s", "prefill tokens/s", fmt.number),
    ("decode_tokens_per_s", "decode tokens/s", fmt.number),
    ("peak_memory_bytes", "peak memory", fmt.size),
)


def print_evaluation(found: Facts, console: Console | None = None) -> None:
    """What `secateur eval` shows: one column, or this model beside the reference with ratios."""
    console = _console(console)
    reference: Facts | None = found.get("reference")
    console.print(Text("model    "), Text(str(found["model"]), "bold"))
    if reference is not None:
        console.print(Text("reference"), Text(str(reference["model"]), "bold"))
    warning = load_warning(found)
    if warning is not None:
        console.print(Text(f"warning: {warning}", "yellow"))
    table = _table("", "model", *(("reference", "ratio", "") if reference is not None else ()))
    _right(table)
    rows = {row.key: row for row in compared(reference, found)} if reference is not None else {}
    table.columns[0].min_width = 26
    for key, label, show in _METRICS:
        if found.get(key) is None:
            continue
        row = [label, show(found[key])]
        if reference is not None:
            ratio, judged = (found.get("ratios") or {}).get(key), rows.get(key)
            style = _STYLE.get(judged.verdict, "") if judged is not None else ""
            text = Text(fmt.ratio(ratio), style) if ratio is not None else Text("")
            row += [show(reference.get(key)), text, Text(judged.note if judged is not None else "", "dim")]
        table.add_row(*row)
    _section(console, None, table)
    sets: Facts = found.get("sets") or {}
    if len(sets) > 1:
        _section(console, "Each text", _sets(sets, reference))
    console.print()
    threads = fmt.threads(found["threads"])
    console.print(
        f"{found['data']} (sha256 {found['data_sha256'][:12]}), windows of {found['length']} tokens; "
        f"{found['dtype']} on {found['device']}, {threads}",
        style="dim",
    )
    for note in found.get("notes", ()):
        console.print(f"note: {note}")


def _sets(sets: Facts, reference: Facts | None) -> Table:
    columns = ["perplexity", "bits/byte", *(["reference", "bits/byte"] if reference is not None else [])]
    table = _table("text", *columns)
    _right(table)
    for name, figures in sets.items():
        row = [name, fmt.number(figures["perplexity"]), fmt.number(figures["bits_per_byte"])]
        if reference is not None:
            other = reference["sets"][name]
            row += [fmt.number(other["perplexity"]), fmt.number(other["bits_per_byte"])]
        table.add_row(*row)
    return table


def print_generation(found: Facts, console: Console | None = None) -> None:
    """What `secateur generate` shows: the prompt dimmed, then what each model wrote."""
    console = _console(console)
    for side in (found, found.get("reference")):
        if side is not None:
            text = Text(found["prompt"], style="dim") + Text(side["text"], style="not dim")
            console.print(Panel(text, title=Text(str(side["model"])), title_align="left", border_style="dim"))


def print_methods(rows: Sequence[Facts], console: Console | None = None) -> None:
    """What `secateur methods` shows."""
    console = _console(console)
    table = _table("method", "", "prunes", "gathers", "paper")
    for column in table.columns:
        column.no_wrap = column is not table.columns[1]
    for row in rows:
        gathers = ", ".join(row["needs"]) or fmt.MISSING
        paper = row["paper"].replace("https://arxiv.org/abs/", "arXiv:")
        table.add_row(row["name"], row["title"], ", ".join(row["prunes"]), gathers, paper)
    console.print(table)
    console.print()
    console.print(
        "units: channels, query heads, KV groups; gathers: statistics of what each Linear reads", style="dim"
    )


def _console(given: Console | None) -> Console:
    # Without markup a path like `models/[v2]` stays what it is.
    return given or Console(markup=False, highlight=False)


def _right(table: Table) -> None:
    """Figures to the right, their labels to the left."""
    for column in table.columns[1:]:
        column.justify = "right"


def _section(console: Console, title: str | None, table: Table) -> None:
    console.print()
    if title is not None:
        console.print(title, style="bold")
    console.print(table)


def _table(*columns: str) -> Table:
    """A header and a rule under it, no frame."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
