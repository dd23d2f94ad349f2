"""Four trials of a sweep: one after the other, with one Ray worker, and with two.

    python benchmarks/sweep.py --repeats 3

One thread a trial everywhere. A turn is a sweep of each kind in a new folder, and turns are repeated; what is timed
is the whole sweep, the start of Ray and of every process included. The tables of all must be identical to the last
digit. Needs the extra `ray`. Results: results/sweep.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

import secateur

RESULTS = Path(__file__).parent / "results"
KINDS = {"here": 0, "one Ray worker": 1, "two Ray workers": 2}
TOLD = {
    "base": {"model": "embedded", "sites": "channel", "samples": 32, "quality": "fast", "speed": False},
    "grid": {"sparsity": [0.25, 0.5], "seed": [0, 1]},
    "trial_cpus": 1,
}


def sweep(workers: int, out: Path) -> tuple[float, Any]:
    """Seconds, and the table without where it lies."""
    chosen, begin = secateur.make_sweep(TOLD), time.monotonic()
    if workers:
        import ray

        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    try:
        found = secateur.sweep(chosen, out, on="ray" if workers else "here", quiet=True)
    finally:
        if workers:
            ray.shutdown()
    seconds = time.monotonic() - begin
    failed = [trial for trial in found["trials"] if trial["state"] != "done"]
    if failed:
        sys.exit(f"failed: {failed}")
    return seconds, [{**result, "source": ""} for result in found["comparison"]["results"]]


def measure(repeats: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    loads, tables = [], []
    for turn in range(repeats):
        for kind, workers in KINDS.items():
            loads.append(os.getloadavg()[0])
            with tempfile.TemporaryDirectory() as folder:
                took, table = sweep(workers, Path(folder) / "out")
            seconds[kind].append(round(took, 2))
            tables.append(table)
            print(f"turn {turn + 1}, {kind}: {took:.1f} s", flush=True)
    return {
        "told": TOLD,
        "cores": psutil.cpu_count(logical=True),
        "load_before": loads,  # the turns themselves are in it
        "seconds": seconds,
        "identical": all(table == tables[0] for table in tables),
        "table": tables[0],
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: seconds of each turn, and how many times as fast as the others two workers are, turn by turn."""
    lines = [
        "| kind | seconds, turn by turn | median | two Ray workers are faster by | from | to |",
        "|" + "---|" * 6,
    ]
    two = found["seconds"]["two Ray workers"]
    for kind, taken in found["seconds"].items():
        ratios = [one / other for one, other in zip(taken, two, strict=True)]
        shown = ", ".join(f"{value:.1f}" for value in taken)
        spread = f"{statistics.median(ratios):.2f}x | {min(ratios):.2f}x | {max(ratios):.2f}x"
        lines.append(f"| {kind} | {shown} | {statistics.median(taken):.1f} | {spread} |")
    same = "identical" if found["identical"] else "NOT identical"
    loads = ", ".join(f"{load:.1f}" for load in found["load_before"])
    return "\n".join(
        [
            "# Sweeps: two Ray workers against one after the other",
            "",
            "By `python benchmarks/sweep.py`: four trials on the embedded model, one thread each, start-up included.",
            f"{found['cores']} cores; load average before each sweep: {loads}. The tables are {same}.",
            "",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["OMP_NUM_THREADS"] = "1"
    found = measure(repeats)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sweep.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "sweep.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
