"""What `secateur explain` shows on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from secateur.report import numbers as fmt
from secateur.report.terminal.console import Console
from secateur.report.terminal.table import Column, Table, figures

Facts = Mapping[str, Any]


def print_explanation(found: Facts, console: Console | None = None) -> None:
    """One unit, or the removed units of a layer, or a summary of all sites."""
    console = console or Console()
    if found["unit"] is not None:
        _unit(found["unit"], found["refit"], console)
        return
    _sites(found, console)
    for site in found["sites"]:
        if "removed" in site:
            _removed(site, console)
    _layers(found, console)
    _hidden(found, console)
    _experts(found, console)
    _linears(found, console)


def _sites(found: Facts, console: Console) -> None:
    if not found["sites"]:
        return
    table = figures("site", "removed", "median bits", "of the output", "given back")
    for site in found["sites"]:
        table.add_row(
            site["site"],
            f"{site['removed_count']} of {site['units']}",
            site["median_bits"],
            fmt.percent(site["energy"]),
            fmt.percent(site["restored"]) if found["refit"] else "no refit",
        )
    console.print(table)
    console.print(
        "bits: what the kept units know of a removed one (Gaussian); of the output: the share of the reader's output "
        "energy that it wrote; given back: how much of that the kept units write in its place",
        style="dim",
    )


def _removed(site: Facts, console: Console) -> None:
    console.print()
    console.print(Text(site["site"], "bold"))
    numbers = (Column(name, right=True) for name in ("bits", "output", "back"))
    table = Table("unit", *numbers, Column("known by (share)", drop=1), Column("largest at", drop=2))
    room = max(16, console.width - 68)  # what the others leave
    for unit in sorted(site["removed"], key=lambda unit: -unit["energy"]):
        table.add_row(
            str(unit["unit"]),
            unit["bits"],
            fmt.percent(unit["energy"]),
            fmt.percent(unit["restored"]),
            ", ".join(f"{k} ({fmt.percent(share)})" for k, share in unit["carriers"][:2] if share > 0) or fmt.MISSING,
            _shortened(_passage(unit["fired"][0]), room) if unit["fired"] else Text(fmt.MISSING),
        )
    console.print(table)


def _passage(fired: Facts) -> Text:
    """One line: a token in bold, in its text."""
    parts = (str(fired[key]).replace("\n", "⏎") for key in ("before", "token", "after"))
    return Text.assemble(next(parts), (next(parts), "bold reverse"), next(parts))


def _shortened(passage: Text, room: int) -> Text:
    passage.truncate(room, overflow="ellipsis")
    return passage


def _unit(unit: Facts, refit: bool, console: Console) -> None:
    console.print(Text(f"{unit['site']}, unit {unit['unit']}", "bold"))
    if unit["kept"]:
        console.print("It was kept." if not unit["carries"] else "It was kept, and knows of these that went:")
        if unit["carries"]:
            table = figures("unit", "its share", "of bits")
            for other, share, bits in unit["carries"]:
                table.add_row(str(other), fmt.percent(share), bits)
            console.print(table)
        return
    left = 1 - unit["restored"]
    console.print(f"It was removed. The kept units know {fmt.number(unit['bits'])} bits of it.")
    console.print(f"It wrote {fmt.percent(unit['energy'])} of the energy of its reader's output.")
    if refit:
        console.print(
            f"The refit lets the kept units write {fmt.percent(unit['restored'])} of that; "
            f"{fmt.percent(left)} of it is lost."
        )
    else:
        console.print(f"Nothing makes up for it: a refit could have given {fmt.percent(unit['restored'])} back.")
    table = figures("known by unit", "share")
    for predictor, share in unit["carriers"]:
        if share > 0:
            table.add_row(str(predictor), fmt.percent(share))
    console.print(table)
    if unit["fired"]:
        console.print("\nLargest at these tokens of the calibration text:")
        for fired in unit["fired"]:
            console.print(Text.assemble(f"{fired['value']:>10.3g}  ", _passage(fired)))


def _layers(found: Facts, console: Console) -> None:
    if found["layers"]:
        table = figures("layer", "what", "score", "", "method")
        for row in found["layers"]:
            gone = "removed" if row["sparsity"] else "kept"
            what = "all of it" if row["kind"] == "layer" else row["kind"]
            table.add_row(str(row["layer"]), what, row.get("score"), gone, fmt.text(row.get("method")))
        console.print(table)
        console.print(
            "score: the loss without it (leave_one_out), how far it turns the stream (block_influence), what "
            "it adds to its entropy (entropy_increase), what its input doesn't tell (layer_mi)",
            style="dim",
        )


def _hidden(found: Facts, console: Console) -> None:
    for row in found["hidden"]:
        kept, units = row["kept"], row["units"]
        console.print(f"Hidden dimensions: {kept} of {units} directions are left ({row['method']}).")
        edge = row["scores"][kept - 1 : kept + 1]
        console.print(f"The least of them scores {fmt.number(edge[0])}, the first that went {fmt.number(edge[1])}.")
        table = figures("read at", "energy that the kept ones carry")
        for place, share in row["energies"].items():
            table.add_row(place, fmt.percent(share))
        console.print(table)


def _experts(found: Facts, console: Console) -> None:
    if found["experts"]:
        merges = any("merged" in row for row in found["experts"])
        more = ["merged into others"] if merges else []
        table = figures("site", "removed", "highest score of these", "lowest of the others", "method", *more)
        for row in found["experts"]:
            scores, gone = sorted(row.get("scores") or ()), row["units"] - row["kept"]
            edge = scores[gone - 1 : gone + 1] if scores and gone else [None] * 2
            taken = [str(sum(merge["taken"] for merge in row.get("merged", ())))] if merges else []
            table.add_row(row["name"], f"{gone} of {row['units']}", *edge, fmt.text(row.get("method")), *taken)
        console.print(table)
        if merges and len(found["experts"]) == 1:
            _merges(found["experts"][0]["merged"], console)


def _merges(merged: Sequence[Facts], console: Console) -> None:
    """Of one layer: what became of each expert that went."""
    table = figures("expert", "most like", "cosine", "")
    for merge in merged:
        what = "merged into it" if merge["taken"] else "removed: a merge would not have lowered the error"
        table.add_row(str(merge["unit"]), str(merge["into"]), merge["likeness"], what)
    console.print(table)


def _linears(found: Facts, console: Console) -> None:
    if found["linears"]:
        table = figures("linear", "zeros", "error of its output")
        for row in found["linears"]:
            table.add_row(row["name"], fmt.percent(row["sparsity"]), row.get("error_after_refit"))
        console.print(table)
