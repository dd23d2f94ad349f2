"""Tables on the terminal for everything but the report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from secateur.report import format as fmt

Facts = Mapping[str, Any]


def print_anatomy(found: Facts, console: Console | None = None) -> None:
    """What `secateur inspect` shows."""
    console = console or Console()
    console.print(
        f"[bold]{found['architecture']}[/bold] ({found['model_type']}, {found['dtype']}), {found['layers']} layers, "
        f"hidden size {found['hidden_size']}, context {found['context']}",
        highlight=False,
    )
    facts = _table("", "value")
    facts.add_row("parameters", fmt.count(found["parameters"]))
    facts.add_row("in prunable matrices", fmt.count(found["linear_parameters"]))
    facts.add_row("weights on disk", fmt.size(found["bytes_on_disk"]))
    facts.add_row("FLOPs per token", fmt.short(found["flops_per_token"]))
    facts.add_row("FLOPs per token at full context", fmt.short(found["flops_per_token_at_context"]))
    facts.add_row("KV cache per token (16 bit)", fmt.size(found["kv_cache_bytes_per_token"]))
    for part in found["parts"]:
        facts.add_row(part["part"], f"{fmt.count(part['parameters'])}  ({fmt.percent(part['share'])})")
    console.print(facts)
    sites = _table(
        "site", "per layer", "weights a unit", "of model", "legal keep counts", "hardware likes"
    )
    for row in found["sites"]:
        sites.add_row(
            row["kind"],
            row["per_layer"],
            fmt.count(row["params_per_unit"]),
            fmt.percent(row["share"]),
            row["legal"],
            row["hardware"],
        )
    console.print(sites)
    speed = _table("cutting", "speeds up", "doesn't")
    for row in found["speed"]:
        speed.add_row(row["kind"], row["speeds_up"], row["does_not"])
    console.print(speed)


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
    console = console or Console()
    reference: Facts | None = found.get("reference")
    columns = ["", str(found["model"])]
    if reference is not None:
        columns += [str(reference["model"]), "ratio"]
    table = _table(*columns)
    for key, label, show in _METRICS:
        if found.get(key) is None:
            continue
        row = [label, show(found[key])]
        if reference is not None:
            other = reference.get(key)
            ratio = found.get("ratios", {}).get(key)
            row += [show(other) if other is not None else "-", fmt.ratio(ratio) if ratio is not None else "-"]
        table.add_row(*row)
    console.print(table)
    sets: Facts = found.get("sets", {})
    if len(sets) > 1:
        console.print(_sets(sets, reference))
    console.print(
        f"on {found['data']} (sha256 {found['data_sha256'][:12]}), windows of {found['length']} tokens, "
        f"{found['dtype']} on {found['device']}, {found['threads']} threads",
        highlight=False,
        style="dim",
    )
    for note in found.get("notes", ()):
        console.print(f"note: {note}", highlight=False)


def _sets(sets: Facts, reference: Facts | None) -> Table:
    columns = ["data", "perplexity", "bits per byte"]
    table = _table(*columns, *(["reference perplexity", "reference bits per byte"] if reference is not None else []))
    for name, figures in sets.items():
        row = [name, fmt.number(figures["perplexity"]), fmt.number(figures["bits_per_byte"])]
        if reference is not None:
            other = reference["sets"][name]
            row += [fmt.number(other["perplexity"]), fmt.number(other["bits_per_byte"])]
        table.add_row(*row)
    return table


def print_generation(found: Facts, console: Console | None = None) -> None:
    """What `secateur generate` shows: the prompt dimmed, then what each model wrote."""
    console = console or Console()
    for side in (found, found.get("reference")):
        if side is not None:
            text = Text(found["prompt"], style="dim") + Text(side["text"], style="not dim")
            console.print(Panel(text, title=Text(str(side["model"])), title_align="left"))


def print_methods(rows: Sequence[Facts], console: Console | None = None) -> None:
    """What `secateur methods` shows."""
    console = console or Console()
    table = _table("method", "", "prunes", "needs", "paper")
    for row in rows:
        needs = ", ".join(row["needs"]) or "nothing"
        table.add_row(row["name"], row["title"], ", ".join(row["prunes"]), needs, row["paper"])
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
