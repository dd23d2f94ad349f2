"""How sparsity is spread over layers: local against what looks at the model, at equal sparsity of the sites.

    python benchmarks/allocation.py --models stories260K,stories3M-fp16 --sparsity 0.25,0.5

Per model, sparsity and allocation: the perplexity of `eval.jsonl` by the judge of `_protocol`, and the parameters
that are left. FFN channels by `obs`, calibrated on `calibrate.jsonl`. Rows that are there are not measured again;
results are added to results/allocation.json and .md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _protocol import context_of, perplexity, read_texts
from transformers import AutoTokenizer

import secateur

RESULTS = Path(__file__).parent / "results"
HOW = ("local", "global", "owl", "sensitivity", "evolve")


def row(model: Path, stories: Path, sparsity: float, how: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out"
        told = ["prune", str(model), "--sites", "channel", "--method", "obs", "--sparsity", str(sparsity)]
        told += ["--allocate", how, "--calibrate", str(stories / "calibrate.jsonl"), "--evaluate", "none"]
        told += ["--no-speed", "--no-explain", "--quiet", "--out", str(out)]
        subprocess.run([sys.executable, "-m", "secateur", *told], check=True, stdout=subprocess.DEVNULL)
        report = json.loads((out / "report.json").read_text())
        found = perplexity_of(out, model, stories)
    return {
        "model": model.name,
        "sparsity": sparsity,
        "how": how,
        "perplexity": found,
        "parameters": report["parameters"]["after"],
        "cpu_seconds": sum(s["cpu_seconds"] for s in report["stages"] if s["name"] in ("allocate", "prune")),
    }


def perplexity_of(folder: Path, model: Path, stories: Path) -> float:
    """Layers of different width load with the modelling file that was saved beside them."""
    texts = read_texts(stories / "eval.jsonl")
    loaded = secateur.load(folder, device="cpu", dtype="float32")
    return perplexity(loaded, AutoTokenizer.from_pretrained(model), texts, context_of(model))


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["FFN channels by `obs`; perplexity of eval.jsonl, behind it the change against `local`.", ""]
    lines += ["| model | sparsity | " + " | ".join(HOW) + " |", "|---|---|" + "---|" * len(HOW)]
    for name, sparsity in dict.fromkeys((r["model"], r["sparsity"]) for r in rows):
        own = {r["how"]: r["perplexity"] for r in rows if (r["model"], r["sparsity"]) == (name, sparsity)}
        cells = [cell(own.get(how), own["local"]) for how in HOW]
        lines.append(f"| {name} | {sparsity:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(perplexity: float | None, local: float) -> str:
    return "–" if perplexity is None else f"{perplexity:.2f}, {perplexity / local - 1:+.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="stories260K,stories3M-fp16")
    parser.add_argument("--sparsity", default="0.25,0.5")
    parser.add_argument("--how", default=",".join(HOW))
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    given = parser.parse_args()
    file = RESULTS / "allocation.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    for name in given.models.split(","):
        for sparsity in map(float, given.sparsity.split(",")):
            for how in given.how.split(","):
                if any((r["model"], r["sparsity"], r["how"]) == (name, sparsity, how) for r in rows):
                    continue
                stories = given.shared / "data" / "tinystories"
                rows.append(row(given.shared / "models" / name, stories, sparsity, how))
                file.write_text(json.dumps(rows, indent=1) + "\n")
                (RESULTS / "allocation.md").write_text(table(rows))
                print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
