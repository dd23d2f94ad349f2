"""What it saves to use freed memory again: a training and a pruning of one model, under three ways of glibc's malloc.

    python benchmarks/memory.py --model MODEL --repeats 2

    used again      what the command line does (`secateur.system.malloc`)
    as glibc does   nothing is told, as in a program that imports Secateur
    fresh pages     each tensor of 4 MiB and more gets pages of its own, which go back when it is freed

A turn is a run of each in a process of its own; turns are repeated. Seconds and memory are those of the stage that
counts, as the report has them. Results: results/memory.json and .md. MODEL is a folder with SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from _process import watch
from peers import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TEXT = ROOT.parent / "shared" / "data" / "web" / "c4.jsonl"
WAYS = {
    "used again": "malloc.keep_large_apart()",
    "as glibc does": "",
    "fresh pages": "os.environ['THP_MEM_ALLOC_ENABLE'] = '1'; malloc._set(malloc.MMAP_THRESHOLD, 4 << 20)",
}
CHILD = """
import os, runpy, sys
from secateur.system import malloc
{way}
malloc.keep_large_apart = lambda: None
sys.argv[0] = "secateur"
runpy.run_module("secateur", run_name="__main__")
"""
STEPS = 8
RECOVER = f"--how distill --steps {STEPS} --batch 4 --length 512 --learning-rate 1e-6 --evaluate-every {STEPS}"
PRUNE = "--method sparsegpt --sparsity 0.5 --samples 32 --length 512 --no-explain"


def jobs(model: Path) -> dict[str, tuple[str, list[str]]]:
    """By name: the stage that counts, and the command."""
    shared = ["--evaluate", "none", "--no-speed", "--quiet"]
    train = ["recover", str(model), "--teacher", str(model), "--data", str(TEXT), *RECOVER.split()]
    prune = ["prune", str(model), "--calibrate", str(TEXT), *PRUNE.split()]
    return {f"{STEPS} steps of training": ("train", train + shared), "SparseGPT": ("prune", prune + shared)}


def measure(model: Path, repeats: int, threads: int) -> list[dict[str, Any]]:
    rows = []
    for turn in range(repeats):
        for job, (name, command) in jobs(model).items():
            for way, told in WAYS.items():
                with tempfile.TemporaryDirectory() as folder:
                    out, load = Path(folder) / "out", os.getloadavg()[0]
                    child = [sys.executable, "-c", CHILD.format(way=told), *command, "--out", str(out)]
                    watch(child, threads, ROOT / "src")
                    stages = json.loads((out / "report.json").read_text(encoding="utf-8"))["stages"]
                stage = next(each for each in stages if each["name"] == name)
                found = {"seconds": round(stage["seconds"], 1), "peak_bytes": stage["peak_memory_bytes"]}
                rows.append({"job": job, "way": way, "turn": turn, "load": round(load, 2), **found})
                print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Seconds of each turn, how many times those of the first way, and the highest peak."""
    lines = ["| | freed memory | seconds, turn by turn | times the first | peak, MiB |", "|---|---|---:|---:|---:|"]
    for job in dict.fromkeys(row["job"] for row in rows):
        first: list[float] = []
        for way in WAYS:
            own = [row for row in rows if (row["job"], row["way"]) == (job, way)]
            seconds = [row["seconds"] for row in own]
            first = first or seconds
            ratio = statistics.median(one / other for one, other in zip(seconds, first, strict=True))
            shown = ", ".join(f"{value:.1f}" for value in seconds)
            lines.append(f"| {job} | {way} | {shown} | {ratio:.2f} | {max(r['peak_bytes'] for r in own) >> 20:,} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    told = parser.parse_args()
    rows = measure(told.model, told.repeats, told.threads)
    loads = [row["load"] for row in rows]
    about = f"{told.model.name}, {told.threads} threads; load average before {min(loads)} to {max(loads)}."
    found = {"measured_on": machine(), "model": told.model.name, "threads": told.threads, "rows": rows}
    (RESULTS / "memory.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    head = "# Freed memory\n\n`python benchmarks/memory.py`: "
    (RESULTS / "memory.md").write_text(f"{head}{about}\n\n{table(rows)}\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
