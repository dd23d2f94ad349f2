"""search.html: what a search has tried and chosen, as pictures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur.report import numbers as fmt
from secateur.report.html.charts import removal_chart
from secateur.report.html.page import environment
from secateur.report.schema.search import CandidateFacts, SearchReport
from secateur.report.terminal.search import amount

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300.0, 236.0, 44.0, 290.0, 10.0, 150.0
LETTERS, LINES = 50, 4  # of a recipe below a picture


@dataclass(frozen=True)
class Mark:
    """A candidate in a picture; `words` are the lines that hover and focus show."""

    x: float
    y: float
    style: str
    hint: str
    words: list[tuple[float, str]]


@dataclass(frozen=True)
class Plot:
    """A scatter plot: marks, the words of its axes, and a line to compare with, where there's one."""

    title: str
    caption: str
    label: str
    marks: list[Mark]
    scale: list[tuple[float, float, str]]
    ticks: list[tuple[float, float, str]]
    line: tuple[float, float, float, float] | None = None


def search_page(found: SearchReport) -> str:
    """The page as one HTML file without scripts but the one that sorts tables; nothing is fetched."""
    return (
        environment()
        .get_template("search.html.j2")
        .render(
            found=found,
            title=f"Search on {found['model']}",
            wishes=[
                (w["wish"], *(amount(w, w[key]) for key in ("whole", "limit", "got")), _held(w["held"]))
                for w in found["wishes"]
            ],
            plots=plots(found),
            shape=shape(found),
            candidates=[(n, one, recipe(one["pieces"])) for n, one in enumerate(found["candidates"], 1)],
            finalists=[(recipe(one["pieces"]), one) for one in found["finalists"]],
            timed=found["timed"],
            timed_rows=_timed(found),
        )
    )


def recipe(pieces: Sequence[tuple[str, float]]) -> str:
    """What a candidate takes, in a line: of each kind of unit the mean share of how many layers, of others where."""
    shares: dict[str, list[float]] = defaultdict(list)
    whole: dict[str, list[int]] = defaultdict(list)
    for site, share in pieces:
        _, layer, kind = site.split(".")
        if kind in ("layer", "attention", "ffn"):
            whole[kind].append(int(layer))
        else:
            shares[kind].append(share)
    parts = [f"{kind} {sum(s) / len(s):.0%} of {len(s)}" for kind, s in shares.items()]
    parts += [f"{kind} {', '.join(map(str, layers))}" for kind, layers in whole.items()]
    return "; ".join(parts)


def plots(found: SearchReport) -> list[Plot]:
    """Divergence against size and, where it's known, time; measured against predicted."""
    every = found["candidates"]
    drawn = []
    for about, title in (("params", "Parameters"), ("latency", "Decoding time"), ("prefill", "Prefill time")):
        whole = found["whole"].get(about)
        if whole:
            share = _share_of(about, whole)
            where = f"{title.lower()} against the untouched model's; down and to the left is better"
            drawn.append(_plot(every, share, f"KL against {title.lower()}", where, percent=True))
    drawn.append(_plot(every, lambda one: math.log(max(one["predicted"], 1e-9)), "Measured against predicted KL", ""))
    return drawn


def _share_of(about: str, whole: float) -> Callable[[CandidateFacts], float]:
    return lambda one: one["takes"][about] / whole


def _plot(
    every: Sequence[CandidateFacts],
    across: Callable[[CandidateFacts], float],
    title: str,
    caption: str,
    percent: bool = False,
) -> Plot:
    x = [across(one) for one in every]
    y = [math.log(max(one["measured"], 1e-9)) for one in every]
    low, high = _ends(x if percent else [*x, *y])
    bottom, top = _ends(y if percent else [*x, *y])

    def place(a: float, b: float) -> tuple[float, float]:
        right = LEFT + 6 + (RIGHT - LEFT - 12) * (a - low) / (high - low)
        return round(right, 2), round(BOTTOM - 6 - (BOTTOM - TOP - 12) * (b - bottom) / (top - bottom), 2)

    # Of a picture with an amount: those that no other beats in it. What stands out is drawn last, over the others.
    ahead = {
        n for n in range(len(every)) if percent and not any(a <= x[n] and b < y[n] for a, b in zip(x, y, strict=True))
    }
    styles = ["chosen" if one["chosen"] else "after" if n in ahead else "before" for n, one in enumerate(every)]
    marks = []
    for n in sorted(range(len(every)), key=lambda n: ("before", "after", "chosen").index(styles[n])):
        one, (right, down) = every[n], place(x[n], y[n])
        size = fmt.short(one["takes"]["params"])
        hint = f"{n + 1}: KL {fmt.number(one['measured'])}, {size} parameters; {recipe(one['pieces'])}"
        marks.append(Mark(right, down, styles[n], hint, _words(hint)))
    scale = [(LEFT - 5, place(low, b)[1], fmt.number(round(math.exp(b), 4))) for b in (bottom, top)]
    said = (lambda a: f"{a:.0%}") if percent else (lambda a: fmt.number(round(math.exp(a), 4)))
    ticks = [(place(a, bottom)[0] + shift, BOTTOM + 14, said(a)) for a, shift in ((low, 8.0), (high, -16.0))]
    line = None if percent else (*place(low, low), *place(high, high))
    label = f"{title}: one mark for each candidate; the table below has the figures"
    return Plot(title, caption, label, marks, scale, ticks, line)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _words(hint: str) -> list[tuple[float, str]]:
    """A text in lines that fit below a picture, each with its place; what has no room is in the table."""
    lines = [""]
    for word in hint.split():
        if len(lines[-1]) + len(word) >= LETTERS:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    kept = lines[:LINES]
    if len(lines) > LINES:
        kept[-1] += " …"
    return [(BOTTOM + 32 + 14 * n, line) for n, line in enumerate(kept)]


def _held(held: bool | None) -> str:
    return {True: "held", False: "not held", None: "not measured"}[held]


def shape(found: SearchReport) -> object:
    """What goes from each layer of the choice; of a front, of its point in the middle."""
    every = found["candidates"]
    front = sorted((one for one in every if one["front"]), key=lambda one: one["takes"]["params"])
    shown = next((one for one in every if one["chosen"]), front[len(front) // 2] if front else None)
    if shown is None:
        return None
    gone = {(int(site.split(".")[1]), site.split(".")[2]): share for site, share in shown["pieces"]}
    kinds = [
        kind for kind in dict.fromkeys(piece["kind"] for piece in found["pieces"]) if any(k == kind for _, k in gone)
    ]
    sites = [
        {"kind": kind, "layer": layer, "sparsity": gone.get((layer, kind), 0.0), "name": f"layers.{layer}.{kind}"}
        for kind in kinds
        for layer in range(found["layers"])
    ]
    return removal_chart({"sites": sites, "model": {"layers": found["layers"]}})


def _timed(found: SearchReport) -> list[tuple[str, ...]]:
    """(what, untouched, predicted, measured, error) of the candidates that were timed, the last one last."""
    names = {"latency": "a decoding step", "prefill": "a prompt"}
    return [
        (
            f"{n}: {names[about]}",
            *(f"{1000 * one[key][about]:.3g} ms" for key in ("whole", "predicted", "measured")),
            fmt.change(one["measured"][about] / one["predicted"][about]),
        )
        for n, one in enumerate(found["timed"], 1)
        for about in names
    ]
