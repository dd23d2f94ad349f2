"""Writes the results table of README.md, and the picture beside it, from the committed results of the benchmarks.

python scripts/readme_figures.py            write both
python scripts/readme_figures.py --check    exit with 1 if they aren't what the results say
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from _pages import keep

ROOT = Path(__file__).resolve().parents[1]
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "results.svg"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: written by scripts/readme_figures.py -->", "<!-- end of results -->"
MODEL = "stories3M-fp16"
PRESETS = ("fast", "balanced", "best")
ROWS = (
    ("half of the weights are zeros", "0.5", "half3m"),
    ("two of every four weights are zeros", "2:4", "two-of-four3m"),
)
REAL = (
    ("llm-compressor, SparseGPT", "llm-compressor", "sparsegpt"),
    ("--quality fast", "secateur", "sparsegpt"),  # which is what that preset runs
    ("--quality balanced", "secateur", "balanced"),
)
SAMPLES = 32
REAL_BEGIN, REAL_END = "<!-- real results: written by scripts/readme_figures.py -->", "<!-- end of real results -->"
WIDTH, LEFT, BAR = 720, 250, 16
COLOURS = {"dense": "#5d6863", "llm-compressor": "#8a938e", "Secateur": "#2c7a55"}


def figures(target: str, recovered: str) -> list[tuple[str, str, float]]:
    """(label, whose, perplexity) of the dense model, the peer and Secateur, from the committed files."""
    runs: list[dict[str, Any]] = json.loads((RESULTS / "frontier.json").read_text(encoding="utf-8"))
    mine = {
        run["preset"]: run for run in runs if (run["part"], run["model"], run["target"]) == ("weights", MODEL, target)
    }
    trained = json.loads((RESULTS / "recovery.json").read_text(encoding="utf-8"))[recovered]
    found = [("dense", "dense", next(iter(mine["best"]["before"].values())))]
    found.append(("llm-compressor, SparseGPT", "llm-compressor", peer(target)))
    found += [(f"--quality {name}", "Secateur", next(iter(mine[name]["after"].values()))) for name in PRESETS]
    return [*found, ("best, then 300 steps of recovery", "Secateur", trained["recovered"])]


def peer(target: str) -> float:
    """What the table of benchmarks/frontier.py says of the peer on the same model, text and cut."""
    lines = (RESULTS / "frontier.md").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(f"| {MODEL} | weight {target} |"))
    return float(line.rstrip(" |").rpartition("|")[2])


def table() -> str:
    found = {words: figures(target, recovered) for words, target, recovered in ROWS}
    names = [name for name, _, _ in next(iter(found.values()))]
    lines = [f"| perplexity when | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    lines += [f"| {words} | {' | '.join(f'{value:.2f}' for _, _, value in row)} |" for words, row in found.items()]
    return "\n".join(lines)


def real_table() -> str:
    """SmolLM2-135M at half of the weights, by kind of text, as benchmarks/real.py has measured it."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / "real.json").read_text(encoding="utf-8"))["rows"]
    dense = next(row for row in rows if row["part"] == "dense")
    # In bf16, which the model is stored in; rows from before that was told apart are in fp32.
    wanted = "weights", SAMPLES, "bfloat16"
    own = [row for row in rows if (row["part"], row["samples"], row.get("dtype")) == wanted]
    measured = {(row["tool"], row["name"]): row for row in own}
    shown = [("dense", dense), *((label, measured[tool, name]) for label, tool, name in REAL)]
    lines = [f"| perplexity of | {' | '.join(label for label, _ in shown)} |", "|---|" + "---:|" * len(shown)]
    for text in dense["perplexity"]:
        figures = [f"{row['perplexity'][text]:.2f}" for _, row in shown]
        lines.append(f"| {text} | {' | '.join(figures)} |")
    minutes = [f"{row['seconds'] / 60:.1f} min" if row["seconds"] else "" for _, row in shown]
    return "\n".join([*lines, f"| pruning took | {' | '.join(minutes)} |"])


def picture() -> str:
    """Bars of both cuts on one scale from zero; the less, the better."""
    parts, y = [], 6
    highest = max(value for _, target, recovered in ROWS for _, _, value in figures(target, recovered))
    for words, target, recovered in ROWS:
        parts.append(f'<text x="0" y="{y + 9}" font-weight="600">{words}</text>')
        y += 20
        for name, whose, value in figures(target, recovered):
            width = round((WIDTH - LEFT - 50) * value / highest, 1)
            parts.append(f'<text x="{LEFT - 8}" y="{y + 8}" text-anchor="end">{name}</text>')
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width}" height="{BAR}" fill="{COLOURS[whose]}"/>')
            parts.append(f'<text x="{LEFT + width + 6}" y="{y + 8}">{value:.2f}</text>')
            y += BAR + 4
        y += 10
    style = "text{font:13px system-ui,sans-serif;dominant-baseline:central;fill:#1d2421}"
    dark = "@media(prefers-color-scheme:dark){text{fill:#e7ebe8}}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">'
    )
    title = "<title>Perplexity of a model of 3 M parameters, pruned by several tools; shorter is better</title>"
    return "\n".join([head, title, f"<style>{style}{dark}</style>", *parts, "</svg>", ""])


def page(text: str) -> str:
    """README.md with the tables between their marks."""
    for begin, end, made in ((BEGIN, END, table()), (REAL_BEGIN, REAL_END, real_table())):
        between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text = between.sub(lambda _, put=f"{begin}\n\n{made}\n\n{end}": put, text)
    return text


def main() -> None:
    wanted = {README: page(README.read_text(encoding="utf-8")), PICTURE: picture()}
    keep(wanted, "not what the results say; run python scripts/readme_figures.py")


if __name__ == "__main__":
    main()
