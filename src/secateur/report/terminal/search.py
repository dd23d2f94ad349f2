"""What `secateur search` shows when it's done."""

from __future__ import annotations

from pathlib import Path

from secateur.report import numbers as fmt
from secateur.report.schema.search import FormatFacts, HiddenFacts, SearchReport, WishFacts
from secateur.report.terminal.console import Console
from secateur.report.terminal.table import Column, Table

SHAPES = " ▁▂▃▄▅▆▇█"


def print_search(found: SearchReport, out: Path, console: Console | None = None) -> None:
    """Wishes, the shape of what was chosen, and how good it is."""
    console = console or Console(markup=False, highlight=False)
    if found["wishes"]:
        table = Table("wish", *(Column(name, right=True) for name in ("before", "limit", "after")), "")
        for wish in found["wishes"]:
            held = {True: "held", False: "NOT held", None: "not measured"}[wish["held"]]
            table.add_row(wish["wish"], *(amount(wish, wish[key]) for key in ("whole", "limit", "got")), held)
        console.print(table)
    else:
        _print_front(found, console)
    for name, line in shape(found):
        console.print(f"{name:<11} {line}")
    if found["perplexity"] is not None:
        before, after = found["perplexity"]["before"], found["perplexity"]["after"]
        was, now = fmt.numbers((before, after))
        kind = next((f", {stored(one['type'])}" for one in found["formats"] if one["chosen"]), "")
        console.print(f"perplexity  {was} → {now} ({fmt.ratio(after / before)}{kind})")
    for line in looked_at(found):
        console.print(line, soft_wrap=True)
    tried = len(found["candidates"])
    rank = found["rank_correlation"]
    ranked = "" if rank is None else f"; predicted and measured agree in rank by {rank:.2f}"
    console.print(f"\n{tried} candidates were measured{ranked}; limited by {found['limited_by']}", soft_wrap=True)
    console.print(f"{out} is ready", soft_wrap=True)


def stored(form: str) -> str:
    """A form of the whole model in words, behind a comma.

    >>> stored("q8_0"), stored("zeros 2:4")
    ('as q8_0', 'zeros 2:4')
    """
    return form if "zeros" in form else f"as {form}"


def looked_at(found: SearchReport) -> list[str]:
    """What came of hidden dimensions, of forms of the whole model, and of the finalists, a line for each."""

    def line(name: str, said: str, chosen: bool) -> str:
        return f"{name:<11} {said}{', chosen' if chosen else ''}"

    def best(one: HiddenFacts | FormatFacts) -> str:
        if one["kl"] is None:
            return "not looked at"
        kl = "not looked for" if one["best"] is None else fmt.number(one["best"])
        return f"KL {fmt.number(one['kl'])} alone, of the best candidate {kl}"

    def model(one: FormatFacts) -> str:
        return "" if one["perplexity"] is None else f", perplexity {fmt.number(one['perplexity'])} after the repair"

    hidden = [line("hidden", f"{x['kept']} of {x['units']}: {best(x)}", x["chosen"]) for x in found["hidden"]]
    formats = [
        line("form", f"{x['type']}: {fmt.size(x['bytes'])} with nothing gone, {best(x)}{model(x)}", x["chosen"])
        for x in found["formats"]
    ]
    models = [
        line(
            f"finalist {n}",
            f"KL {fmt.number(x['kl'])} before the repair, perplexity {fmt.number(x['perplexity'])}",
            x["chosen"],
        )
        for n, x in enumerate(found["finalists"], 1)
    ]
    return hidden + formats + models


def _print_front(found: SearchReport, console: Console) -> None:
    """The points of the front, each with the plan that replays it; the largest first."""
    timed = "latency" in found["whole"]
    names = ["plan", "parameters", "", *(["decoding", ""] if timed else []), "KL"]
    table = Table(*(Column(name, right=n > 0) for n, name in enumerate(names)))
    front = [one for one in found["candidates"] if one["front"]]
    for one in sorted(front, key=lambda one: -one["takes"]["params"]):
        cells = [fmt.short(one["takes"]["params"]), fmt.ratio(one["takes"]["params"] / found["whole"]["params"])]
        if timed:
            seconds = one["takes"]["latency"]
            cells += [f"{1000 * seconds:.3g} ms", fmt.ratio(seconds / found["whole"]["latency"])]
        table.add_row(one["plan"] or fmt.MISSING, *cells, one["measured"])
    console.print(table)
    console.print(
        "KL in nats per token, before any repair; secateur prune MODEL --plan FILE makes one of them", soft_wrap=True
    )


def amount(wish: WishFacts, value: float | None) -> str:
    """A value of what a wish is about."""
    if value is None:
        return fmt.MISSING
    about = wish["about"]
    if about in ("latency", "prefill"):
        return f"{1000 * value:.3g} ms"
    if about in ("size", "memory"):
        return fmt.size(value)
    return fmt.number(value) if about in ("perplexity", "task") else fmt.short(value)


def shape(found: SearchReport) -> list[tuple[str, str]]:
    """For each sub-block a letter for each layer: how much of it goes."""
    chosen = next((candidate for candidate in found["candidates"] if candidate["chosen"]), None)
    if chosen is None:
        return []
    gone = shares_by_part(chosen["pieces"])
    return [
        (part, "".join(SHAPES[round(8 * gone.get((layer, part), (0.0, ""))[0])] for layer in range(found["layers"])))
        for part in ("attention", "ffn")
    ]


def shares_by_part(pieces: list[tuple[str, float]]) -> dict[tuple[int, str], tuple[float, str]]:
    """(layer, sub-block) -> (the fraction that goes, of which kind); a layer that goes takes both."""
    found: dict[tuple[int, str], tuple[float, str]] = {}
    for site, share in pieces:
        _, layer, kind = site.split(".")
        parts = {"layer": ("attention", "ffn"), "channel": ("ffn",), "expert": ("ffn",), "ffn": ("ffn",)}
        for part in parts.get(kind, ("attention",)):
            found[int(layer), part] = (share, kind)
    return found
