"""What criteria.py measured, as Markdown: a table for each model, ranks, and the spread of the criteria."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any


def table(result: dict[str, Any]) -> str:
    """Markdown: a line for each criterion, without -> with refit at each ratio, and its mean rank with refit."""
    rows = result["rows"]
    ratios = sorted({row["ratio"] for row in rows})
    value = {(r["method"], r["ratio"], r["repair"]): r["perplexity"] for r in rows}
    names = list(dict.fromkeys(row["method"] for row in rows))
    ranks = {name: rank(value, names, ratios, name) for name in names}
    later = ", ".join(result.get("added", []))
    apart = f" ({later} in another run)" if later else ""
    lines = [
        f"## {result['model']}, {result['parameters']:,} parameters, dense {result['dense']:.3f}",
        "",
        f"One calibration pass of {result['calibration_tokens']:,} tokens for all{apart}: "
        f"{result['calibration_seconds']:.1f} s. Perplexity without → with refit.",
        "",
        "| criterion | " + " | ".join(f"{ratio:.1%}" for ratio in ratios) + " | mean rank with refit |",
        "|---|" + "---|" * (len(ratios) + 1),
    ]
    for name in sorted(names, key=lambda n: ranks[n]):
        cells = []
        for ratio in ratios:
            pair = [value.get((name, ratio, repair)) for repair in ("none", "refit")]
            cells.append(" → ".join("" if v is None else f"{v:.4g}" for v in pair).removesuffix(" → "))
        shown = "" if math.isinf(ranks[name]) else f"{ranks[name]:.1f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {shown} |")
    lines += ["", spread(value, names, ratios), ""]
    return "\n".join(lines)


def rank(value: dict[tuple[str, float, str], float], names: list[str], ratios: list[float], name: str) -> float:
    """Mean place among the criteria with refit; infinite for rows that have none."""
    places = []
    for ratio in ratios:
        own = value.get((name, ratio, "refit"))
        if own is None:
            return math.inf
        others = [value[n, ratio, "refit"] for n in names if (n, ratio, "refit") in value]
        places.append(1 + sum(other < own for other in others))
    return statistics.mean(places)


def spread(value: dict[tuple[str, float, str], float], names: list[str], ratios: list[float]) -> str:
    """How much the choice matters: the worst informed criterion over the best, in each column."""
    parts = []
    informed = [name for name in names if not name.startswith("random")]
    for ratio in ratios:
        both = []
        for repair in ("none", "refit"):
            found = [value[n, ratio, repair] for n in informed if (n, ratio, repair) in value]
            both.append(f"{max(found) / min(found):.2f}")
        parts.append(f"{ratio:.1%}: {' → '.join(both)}")
    return f"Worst over best informed criterion, without → with refit: {'; '.join(parts)}."


def write(results: list[dict[str, Any]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "criteria.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    head = "# Criteria for FFN channels\n\nUniform over the layers, all from the untouched model; see criteria.py.\n"
    text = "\n".join([head, *map(table, results)])
    (out / "criteria.md").write_text(text.rstrip() + "\n", encoding="utf-8")
