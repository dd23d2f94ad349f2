"""What `inspect`, `eval`, `generate` and `methods` show on a terminal; the report of a run has its own file.

Every text that comes from outside (paths, prompts, model names) is printed as it is, never as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.panel import Panel
from rich.text import Text

from secateur.report import numbers as fmt
from secateur.report.compared import compared, load_warning
from secateur.report.terminal.console import Console, plain
from secateur.report.terminal.table import Column, Table, figures, section

Facts = Mapping[str, Any]
WORTH_BF16 = 1.5  # times as fast as fp32: worth a word


def print_anatomy(found: Facts, console: Console | None = None) -> None:
    """What `secateur inspect` shows."""
    console = plain(console)
    head = f"{found['dtype']}, {found['layers']} layers, hidden size {found['hidden_size']}"
    if found["context"] is not None:
        head += f", context {found['context']}"
    console.print(Text(f"{found['architecture']} ({found['model_type']})", "bold"), Text(head))
    if found.get("found") == "detected":
        console.print(
            "detected: not in the table, each kind of cut proved on a small copy of this class", style="dim"
        )
    if "stored_as" in found:
        console.print(Text(f"dequantised: was stored as {found['stored_as']}", "dim"))
    section(console, None, _sizes(found))
    section(console, "What can be cut", _sites(found["sites"]))
    for line in found.get("not_offered", ()):
        console.print(Text(f"not offered: {line}", "dim"))
    for line in found.get("left_out", ()):
        console.print(Text(f"note: {line}", "dim"))
    console.print()
    console.print(
        "Counts for all layers alike, which a stock class loads. † and layers that differ load with the modelling "
        "file that is saved beside the weights (trust_remote_code=True), or with secateur.load.",
        style="dim",
    )
    if "client" in found:
        console.print()
        for line in found["client"]["notes"]:
            console.print(line)
        if found["client"]["how"]:
            console.print(f"then: {found['client']['how']}")
    speed = Table("cut", Column("faster or smaller", wraps=24), Column("not", wraps=20, drop=1))
    for row in found["speed"]:
        speed.add_row(row["kind"], row["speeds_up"], row["does_not"])
    section(console, "What a cut speeds up", speed)
    if "forecast" in found:
        _forecast(found["forecast"], console)


def _forecast(found: Facts, console: Console) -> None:
    """What pruning would take here."""
    table = Table(
        "cut",
        "--quality",
        Column("prune", right=True),
        Column("evaluate", right=True, drop=2),
        Column("memory", right=True),
        Column("at least", right=True, drop=1),
        Column("disk", right=True),
        Column("", drop=3),
    )
    for row in found["rows"]:
        times = [fmt.seconds(row["seconds"]), fmt.seconds(row["evaluation_seconds"])]
        sizes = [fmt.size(row[key]) for key in ("memory_bytes", "least_memory_bytes", "disk_bytes")]
        table.add_row(row["cut"], row["quality"], *times, *sizes, "" if row["fits"] else "more than is free")
    section(console, "What pruning takes here, by formulas", table)
    console.print(
        f"{found['machine']}, {fmt.short(found['flops_per_second'])}FLOP/s measured, "
        f"{fmt.size(found['free_memory_bytes'])} of memory and {fmt.size(found['free_disk_bytes'])} of disk free; "
        f"{found['samples']} sequences of {found['length']} tokens. Times are of the right order, no more: "
        "docs/expect.md. With --memory, hidden states go to disk down to 'at least'.",
        style="dim",
    )
    if found["bf16_times_as_fast"] > WORTH_BF16:
        console.print(
            f"Products in bf16 are {found['bf16_times_as_fast']:.1f} times as fast here: a checkpoint in bf16 is "
            "pruned with those, another with --dtype bfloat16; statistics and solves stay wider.",
            style="dim",
        )


def _sizes(found: Facts) -> Table:
    table = Table("", Column("", right=True), Column("", right=True), header=False)

    def add(name: str, value: str, more: str = "") -> None:
        table.add_row(name, value, Text(more, "dim"))

    add("parameters", fmt.count(found["parameters"]))
    for part in found["parts"]:
        add(f"  {part['part']}", fmt.count(part["parameters"]), fmt.percent(part["share"]))
    share = found["linear_parameters"] / found["parameters"]
    add("in prunable matrices", fmt.count(found["linear_parameters"]), fmt.percent(share))
    add("weights on disk", fmt.size(found["bytes_on_disk"]))
    add("FLOPs per token", fmt.short(found["flops_per_token"]))
    if found["context"]:
        add("  at full context", fmt.short(found["flops_per_token_at_context"]))
    if found["kv_cache_bytes_per_token"]:
        add("KV cache per token", fmt.size(found["kv_cache_bytes_per_token"]), "16 bit")
    return table


def _sites(rows: Sequence[Facts]) -> Table:
    table = Table(
        "site",
        "per layer",
        Column("weights each", right=True, drop=2),
        Column("of model", right=True, drop=1),
        Column("may keep", wraps=20),
        Column("hardware likes", wraps=14, drop=3),
    )
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
    console = plain(console)
    reference: Facts | None = found.get("reference")
    console.print(Text("model    "), Text(str(found["model"]), "bold"))
    if reference is not None:
        console.print(Text("reference"), Text(str(reference["model"]), "bold"))
    warning = load_warning(found)
    if warning is not None:
        console.print(Text(f"warning: {warning}", "yellow"))
    beside = (Column("reference", right=True), Column("ratio", right=True), Column("", drop=1))
    table = Table("", Column("model", right=True), *(beside if reference is not None else ()))
    rows = {row.key: row for row in compared(reference, found)} if reference is not None else {}
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
    section(console, None, table)
    sets: Facts = found.get("sets") or {}
    if len(sets) > 1:
        section(console, "Each text", _sets(sets, reference))
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
    table = figures("text", *columns)
    for name, found in sets.items():
        row: list[Any] = [name, found["perplexity"], found["bits_per_byte"]]
        if reference is not None:
            other = reference["sets"][name]
            row += [other["perplexity"], other["bits_per_byte"]]
        table.add_row(*row)
    return table


def print_generation(found: Facts, console: Console | None = None) -> None:
    """What `secateur generate` shows: the prompt dimmed, then what each model wrote."""
    console = plain(console)
    for side in (found, found.get("reference")):
        if side is not None:
            text = Text(found["prompt"], style="dim") + Text(side["text"], style="not dim")
            console.print(Panel(text, title=Text(str(side["model"])), title_align="left", border_style="dim"))


# What a method prunes -> how that is called above its methods.
_GROUPS = {
    "weights": "Single weights",
    "units": "Units: FFN channels, query heads, KV groups",
    "experts": "Experts",
    "dimensions": "Hidden dimensions",
    "layers": "Layers",
    "sub-blocks": "Sub-blocks: attention or FFN of a layer",
}


def print_methods(rows: Sequence[Facts], defaults: Mapping[str, str], console: Console | None = None) -> None:
    """What `secateur methods` shows: a table for each thing that is pruned.

    Args:
        defaults: what is pruned -> the method that is taken where none is named.
    """
    console = plain(console)
    for prunes in [*_GROUPS, *sorted({other for row in rows for other in row["prunes"]} - _GROUPS.keys())]:
        of_group = [row for row in rows if prunes in row["prunes"]]
        if not of_group:
            continue
        table = Table("method", Column("", wraps=24), Column("gathers", drop=2), Column("paper", drop=1))
        for row in sorted(of_group, key=lambda row: row["name"] != defaults.get(prunes)):
            chosen = row["name"] == defaults.get(prunes)
            title = Text(row["title"]) + Text(" (default)" if chosen else "", "bold")
            paper = row["paper"].removeprefix("https://arxiv.org/abs/").removeprefix("https://")
            gathers = ", ".join(row["needs"]) or fmt.MISSING
            table.add_row(Text(row["name"], "bold" if chosen else ""), title, gathers, paper)
        section(console, _GROUPS.get(prunes, prunes), table)
    console.print()
    console.print(
        "gathers: statistics of what each Linear reads; paper: an arXiv number, or an address. "
        "docs/methods.md has the formulas; --json has everything",
        style="dim",
    )
