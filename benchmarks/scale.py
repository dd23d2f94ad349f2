"""Does the memory of a run depend on the model's depth? Do two ranks halve its time? Does a kill change a bit?

    python benchmarks/scale.py                 all parts
    python benchmarks/scale.py --part depth    one of depth, big, ranks, kill
    python benchmarks/scale.py --quick         small versions of all, to try it out

Makes checkpoints with random weights in a temporary folder, prunes them in subprocesses and watches the resident
memory of the whole process tree from outside. Prints a table a part and adds it to results/scale.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from _checkpoints import make, make_tokens

RESULTS = Path(__file__).parent / "results"
LENGTH = 128
INTERVAL = 0.02


def command(
    model: Path, out: Path, tokens: Path, method: str, *more: str, samples: int = 16, length: int = LENGTH
) -> list[str]:
    return [
        *("prune", str(model), "--method", method, "--sparsity", "0.5", "--calibrate", str(tokens)),
        *(
            "--samples",
            str(samples),
            "--length",
            str(length),
            "--evaluate",
            "none",
            "--quiet",
            "--out",
            str(out),
            *more,
        ),
    ]


def environment(threads: int) -> dict[str, str]:
    width = str(threads)
    return os.environ | {"OMP_NUM_THREADS": width, "MKL_NUM_THREADS": width, "HF_HUB_OFFLINE": "1"}


def run(arguments: list[str], threads: int = 2, ranks: int = 1) -> dict[str, Any]:
    """Runs a prune to its end: seconds of its prune stage and in all, peak resident bytes of the process tree."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    begun, peak = time.monotonic(), 0
    process = psutil.Popen(
        [sys.executable, *launcher, "-m", "secateur", *arguments],
        env=environment(threads),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None:
        peak = max(peak, resident(process))
        time.sleep(INTERVAL)
    if process.returncode:
        sys.exit(f"secateur {' '.join(arguments)}\nfailed:\n{process.stderr.read()[-2000:]}")
    report = json.loads((Path(arguments[arguments.index("--out") + 1]) / "report.json").read_text())
    stages = {stage["name"]: stage["seconds"] for stage in report["stages"]}
    return {
        "seconds": time.monotonic() - begun,
        "prune_seconds": stages["prune"],
        "peak_bytes": peak,
        "gate": report["gate"],
    }


def resident(process: psutil.Process) -> int:
    total = 0
    for member in (process, *_children(process)):
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue
    return total


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def depth(work: Path, quick: bool) -> list[dict[str, Any]]:
    """Peak memory and time over depth, the rest of the model being the same."""
    rows = []
    hidden, ffn = (256, 704) if quick else (1024, 2816)
    tokens = work / "depth.jsonl"
    make_tokens(tokens, 40, LENGTH)
    for layers in (2, 4, 8) if quick else (8, 16, 32):
        model = work / f"depth-{layers}"
        size = make(model, layers, hidden, ffn)
        for method in ("wanda", "sparsegpt"):
            # The gate would load the whole model: the bound makes it go layer by layer, as the run itself does.
            found = run(command(model, work / f"out-{layers}-{method}", tokens, method, "--memory", "256MB"))
            rows.append(
                {
                    "layers": layers,
                    "method": method,
                    "checkpoint MB": round(size / 1e6),
                    "peak MiB": round(found["peak_bytes"] / 2**20),
                    "prune s": round(found["prune_seconds"], 1),
                    "prune s a layer": round(found["prune_seconds"] / layers, 2),
                }
            )
    for row in rows:
        first = next(r for r in rows if r["method"] == row["method"])
        row["peak / first"] = round(row["peak MiB"] / first["peak MiB"], 3)
    return rows


def big(work: Path, quick: bool) -> list[dict[str, Any]]:
    """A checkpoint of more than 6 GB, few and short sequences, under a small bound."""
    model, tokens = work / "big", work / "big.jsonl"
    layers = 2 if quick else 32
    size = make(model, layers, 1024 if quick else 2560, 2816 if quick else 10240, 20 if not quick else 16, 4)
    make_tokens(tokens, 12, LENGTH)
    found = run(command(model, work / "big-out", tokens, "wanda", "--memory", "256MB", samples=8))
    return [
        {
            "layers": layers,
            "checkpoint GB": round(size / 1e9, 2),
            "peak GiB": round(found["peak_bytes"] / 2**30, 2),
            "seconds in all": round(found["seconds"]),
            "prune s": round(found["prune_seconds"]),
            "verified": found["gate"]["how"],
            "largest logit difference": found["gate"]["max_logit_difference"],
        }
    ]


def ranks(work: Path, quick: bool) -> list[dict[str, Any]]:
    """Two ranks of one thread each against one rank of one thread, on 128 sequences of 512 tokens, the default;
    medians of alternating runs."""
    model, tokens, length = work / "ranks", work / "ranks.jsonl", LENGTH if quick else 512
    make(model, 2)
    make_tokens(tokens, 200, length)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(1 if quick else 3):
        for count in (1, 2):
            out = work / f"ranks-{count}-{turn}"
            words = command(model, out, tokens, "sparsegpt", samples=128, length=length)
            found = run(words, threads=1, ranks=count)
            seconds[count].append(found["prune_seconds"])
    one, two = (statistics.median(seconds[count]) for count in (1, 2))
    row = {"ranks": "1, then 2", "prune s": f"{one:.1f}, {two:.1f}", "faster": round(one / two, 2)}
    return [row | {"same weights": digest(work / "ranks-1-0") == digest(work / "ranks-2-0")}]


def kill(work: Path, quick: bool) -> list[dict[str, Any]]:
    """SIGKILL at random moments of one run, each time resumed, against a run that was left alone."""
    model, tokens = work / "kill", work / "kill.jsonl"
    layers = 4 if quick else 12
    make(model, layers, 512, 1408)
    make_tokens(tokens, 40, LENGTH)
    alone = run(command(model, work / "alone", tokens, "sparsegpt"), threads=1)
    a_block = alone["prune_seconds"] / layers
    out, draw, kills, finished = work / "killed", random.Random(0), 0, []
    journal = out / ".secateur" / "journal.jsonl"
    while kills < (3 if quick else 10) and not (out / "report.json").exists():
        resume = ["--resume"] if journal.exists() else []
        process = subprocess.Popen(
            [sys.executable, "-m", "secateur", *command(model, out, tokens, "sparsegpt", *resume)],
            env=environment(1),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not _moved(journal, len(finished)):
            time.sleep(INTERVAL)
        time.sleep(draw.uniform(0, 2 * a_block))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        finished.append(len(list((out / ".secateur" / "blocks").glob("*.safetensors"))))
    if not (out / "report.json").exists():
        run(command(model, out, tokens, "sparsegpt", *(["--resume"] if out.exists() else [])), threads=1)
    return [
        {
            "kills": kills,
            "blocks finished at each": ", ".join(map(str, finished)),
            "byte-identical": digest(work / "alone") == digest(out),
        }
    ]


def _moved(journal: Path, sessions: int) -> bool:
    """Whether the present session has begun its work: the event file counts one start a session."""
    events = journal.with_name("events.jsonl")
    return events.exists() and events.read_text().count('"name": "prune"') > sessions


def digest(folder: Path) -> str:
    """SHA-256 of all weights of a checkpoint."""
    total = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        total.update(file.read_bytes())
    return total.hexdigest()


PARTS: dict[str, Callable[[Path, bool], list[dict[str, Any]]]] = {
    "depth": depth,
    "big": big,
    "ranks": ranks,
    "kill": kill,
}


def table(rows: list[dict[str, Any]]) -> str:
    head = list(rows[0])
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(str(row[key]) for key in head) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), action="append", help="default: all")
    parser.add_argument("--quick", action="store_true", help="small versions, nothing is written to results/")
    arguments = parser.parse_args()
    file = RESULTS / "scale.json"
    for name in arguments.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="secateur-scale-") as folder:
            rows = PARTS[name](Path(folder), arguments.quick)
        print(f"\n{name}: {PARTS[name].__doc__}\n\n{table(rows)}", flush=True)
        # Read only now: parts may run side by side.
        known = json.loads(file.read_text()) if file.exists() else {}
        known[name] = {"what": " ".join(str(PARTS[name].__doc__).split()), "cores": os.cpu_count(), "rows": rows}
        if not arguments.quick:
            RESULTS.mkdir(exist_ok=True)
            file.write_text(json.dumps(known, indent=1) + "\n")
            page = "\n\n".join(f"## {n}\n\n{p['what']}\n\n{table(p['rows'])}" for n, p in known.items())
            (RESULTS / "scale.md").write_text(
                f"# Scale\n\n`python benchmarks/scale.py`, {os.cpu_count()} cores\n\n{page}\n"
            )


if __name__ == "__main__":
    main()
