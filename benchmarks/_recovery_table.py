"""What recovery.py measured, as Markdown."""

from __future__ import annotations

from typing import Any


def table(results: dict[str, Any]) -> str:
    """A line for each cut, and what the other parts found."""
    lines = ["# Recovery", "", "Perplexity of eval.jsonl; 300 steps of 8 x 256 tokens of calibrate.jsonl.", ""]
    lines += [
        "| part | pruned by | recovered by | rate | pruned | recovered | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        if "recovered" in r:
            cells = [name, f"`{r['prune']}`", f"`{r['recover']}`", f"{r['learning_rate']:.2g}"]
            lines.append(f"| {' | '.join([*cells, *(f'{r[k]:.3f}' for k in ('pruned', 'recovered', 'goal'))])} |")
    if "overhead" in results:
        r = results["overhead"]
        lines += [
            "",
            f"Overhead over a bare loop: {100 * r['overhead']:.1f} % a step ({r['bare_seconds']:.3f} s bare).",
        ]
    if "int8" in results:
        lines += ["", "A teacher as int8, against fp32:", "", "| model | bytes | of fp32's | KL, nats a token |"]
        lines += ["|---|---|---|---|"]
        rows = results["int8"].items()
        lines += [f"| {n} | {r['bytes']:,} | {100 * r['of_fp32']:.1f} % | {r['kl']:.5f} |" for n, r in rows]
    if "ranks" in results:
        lines += [
            "",
            f"Two ranks against one: losses differ by {100 * results['ranks']['largest_difference']:.3f} %.",
        ]
    return "\n".join(lines) + "\n"
