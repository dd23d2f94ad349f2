"""How much the choice of a criterion matters, by the size of the model: best, worst and random.

For models that were trained alike: elsewhere a difference between two sizes can come from their training. Even then
one size can lose less than another by any cut, so the spread is also shown as a share of what a random cut costs:
ln(worst / best) / ln(random / dense).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from _plot import line_chart

WHAT = ("random", "worst", "best")
REPAIRS = {"none": "no refit", "refit": "refit"}


class Figures(NamedTuple):
    """Of one model, ratio and repair. Best and worst are of the criteria that look at the model."""

    best: float
    worst: float
    random: float | None
    winner: str
    loser: str


def figures(result: dict[str, Any], ratio: float, repair: str) -> Figures:
    """Perplexities of one model; `random` is the median of the seeds, None where there is no control."""
    mine = [row for row in result["rows"] if (row["ratio"], row["repair"]) == (ratio, repair)]
    value = {row["method"]: row["perplexity"] for row in mine}
    names = [name for name in value if not name.startswith(("random", "flap +"))]
    winner, loser = min(names, key=lambda n: value[n]), max(names, key=lambda n: value[n])
    return Figures(value[winner], value[loser], value.get("random"), winner, loser)


def by_size(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(results, key=lambda result: result["parameters"])


def spread_table(results: list[dict[str, Any]], ratio: float) -> str:
    """Markdown: a line for each size and repair."""
    head = "| parameters | dense | repair | best | worst | random | worst / best | of random's cost | random / best |"
    lines = [head, "|" + "---|" * 9]
    for result in by_size(results):
        for repair, shown in REPAIRS.items():
            f = figures(result, ratio, repair)
            chance, share, gain = "", "", ""
            if f.random is not None:
                chance, gain = f"{f.random:.4g}", f"{f.random / f.best:.3f}"
                share = f"{math.log(f.worst / f.best) / math.log(f.random / result['dense']):.1%}"
            cells = [f"{result['parameters']:,}", f"{result['dense']:.4g}", shown, f"{f.best:.4g} {f.winner}"]
            cells += [f"{f.worst:.4g} {f.loser}", chance, f"{f.worst / f.best:.3f}", share, gain]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread_charts(results: list[dict[str, Any]], out: Path, name: str) -> list[str]:
    """A picture for each ratio: perplexity over the untouched model's, against parameters. Returns: file names."""
    made = []
    for ratio in sorted({row["ratio"] for result in results for row in result["rows"]}):
        series: dict[str, list[tuple[float, float]]] = {}
        for repair, shown in REPAIRS.items():
            for result in by_size(results):
                found = figures(result, ratio, repair)
                for what in WHAT:
                    value = getattr(found, what)
                    if value is not None:
                        point = (result["parameters"] / 1e6, value / result["dense"])
                        series.setdefault(f"{what}, {shown}", []).append(point)
        file = out / f"{name}-{100 * ratio:g}.svg"
        title = f"{ratio:.0%} of the FFN channels: criteria by size"
        series = {name: series[name] for what in WHAT for name in series if name.startswith(what)}
        plain = [shown for shown in series if shown.endswith(REPAIRS["none"])]
        colours = {shown: i for i, what in enumerate(WHAT) for shown in series if shown.startswith(what)}
        up = "perplexity / untouched"
        line_chart(file, title, series, "million parameters", up, (True, True), plain, colours)
        made.append(file.name)
    return made


def write_family(
    results: list[dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    out: Path,
) -> None:
    """criteria-family.json, .md and its pictures; `table` shows all criteria of one model."""
    results, name = by_size(results), "criteria-family"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    pictures = spread_charts(results, out, name)
    first, asked = results[0], results[0]["asked"]
    parts = [
        "# Criteria by the size of the model",
        f"Trained alike by scripts/train_family.py on {first['training']['tokens']:,} tokens each. "
        f"Criteria: {', '.join(asked['methods']) or 'all'}; random is the median of {asked['seeds']} seeds. "
        f"Calibrated on {first['calibration_tokens']:,} tokens, evaluated on {first['evaluated_tokens']:,}.",
    ]
    for ratio, picture in zip(sorted({row["ratio"] for row in first["rows"]}), pictures, strict=True):
        parts += [f"## {ratio:.1%} of the channels", spread_table(results, ratio), f"![{picture}]({picture})"]
    text = "\n\n".join([*parts, *map(table, results)])
    (out / f"{name}.md").write_text(text.rstrip() + "\n", encoding="utf-8")
