"""Experts removed, and removed and merged: what is it worth?

    python benchmarks/experts.py --work mixtures
    python benchmarks/experts.py --models path/to/mixture --work mixtures --sparsity 0.25,0.5

Without --models two small mixtures are grown out of stories260K and trained for some minutes (`_mixture.py`). Each
method is run at each sparsity, without and with --merge-experts, on the same calibration tokens. Writes
results/experts.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from _mixture import ORIGINS, mixture
from _protocol import judge, read_texts

import secateur
from secateur.config.configuration import resolve
from secateur.cut.rules import Rules
from secateur.cut.units import cut_units

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).resolve().parents[2] / "shared"


def measure(model: Path, method: str, sparsity: float, merge: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    """One cut: perplexity, and how much of what the experts of a layer write is lost."""
    recipe = secateur.Recipe(
        model=str(model), sites=("expert",), sparsity=sparsity, method=(method,), merge_experts=merge
    )
    streamed = secateur.open_for_walk(model, "cpu", "float32")
    tokens = secateur.calibrate(model, str(arguments.calibrate), arguments.samples).tokens
    rules, cuts = Rules.from_recipe(resolve(recipe), streamed.checkpoint), []
    out = arguments.work / "pruned"
    with secateur.save(streamed, out, overwrite=True) as put:
        for block in secateur.walk(streamed, tokens):
            cuts += cut_units(block, rules.unit_kinds, rules.units)
            put(block)
    merges = [m for cut in cuts for m in cut.merged or ()]
    row: dict[str, Any] = {"model": model.name, "sparsity": sparsity, "method": method, "merge": merge}
    row["perplexity"] = judged(out, model, arguments)
    row["removed"] = sum(cut.site.units - len(cut.keep) for cut in cuts)
    row["merged"] = sum(m.taken for m in merges)
    if merge:
        row["error_removed"] = statistics.mean(cut.error_masked or 0.0 for cut in cuts)
        row["error_merged"] = statistics.mean(cut.error or 0.0 for cut in cuts)
    print("  ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()), flush=True)
    return row


def judged(checkpoint: Path, original: Path, arguments: argparse.Namespace) -> float:
    """Perplexity as plain transformers computes it."""
    texts = read_texts(arguments.evaluate)[: arguments.documents]
    return judge(checkpoint, original, texts, None)["perplexity"]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each model, sparsity and method."""
    head = "| model | sparsity | method | dense | removed | removed and merged | error of the layers | merged |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for plain, own in zip(rows[::2], rows[1::2], strict=True):
        errors = f"{own['error_removed']:.4f} → {own['error_merged']:.4f}"
        lines.append(
            f"| {own['model']} | {own['sparsity']:.1%} | `{own['method']}` | {own['dense']:.3f} | "
            f"{plain['perplexity']:.3f} | {own['perplexity']:.3f} | {errors} | {own['merged']} of {own['removed']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="", help="folders with mixtures; commas")
    parser.add_argument("--work", type=Path, required=True, help="folder for mixtures and pruned models")
    parser.add_argument("--dense", type=Path, default=SHARED / "models" / "stories260K")
    parser.add_argument("--sparsity", default="0.25,0.5,0.75")
    parser.add_argument("--methods", default="reap")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--calibrate", type=Path, default=SHARED / "data" / "tinystories" / "calibrate.jsonl")
    parser.add_argument("--evaluate", type=Path, default=SHARED / "data" / "tinystories" / "eval.jsonl")
    parser.add_argument("--documents", type=int, default=1000, help="of the evaluation text, at most")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    models = [Path(name) for name in arguments.models.split(",") if name]
    models = models or [mixture(arguments.work / o, arguments.dense, arguments.calibrate, o) for o in ORIGINS]
    rows = []
    for model in models:
        dense = judged(model, model, arguments)
        for sparsity in map(float, arguments.sparsity.split(",")):
            for method in arguments.methods.split(","):
                pair = [measure(model, method, sparsity, merge, arguments) for merge in (False, True)]
                rows += [{**row, "dense": dense} for row in pair]
                write(rows, arguments)
    print(table(rows))


def write(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "experts.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    head = f"# Experts\n\nPerplexity, {arguments.samples} calibration sequences, fp32; see experts.py.\n\n"
    (arguments.out / "experts.md").write_text(head + table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
