"""Perplexity against sparsity and against processor seconds, for every preset and the best peer.

    python benchmarks/frontier.py                              everything (hours on two cores)
    python benchmarks/frontier.py --part weights --models stories260K --presets fast balanced
    python benchmarks/frontier.py --draw                       only the tables and pictures, from what is there

Each run is `secateur prune` in a process of its own; its figures go to results/frontier.json at once, and a run that
is there already isn't repeated (delete its line to do so). The tables and pictures also go into docs/quality.md. The
peer's figures are those of results/peers.json.
Parts: weights, channels, domains (calibrated on one text, evaluated on others), models (other architectures).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from _docs import between_marks
from _plot import line_chart

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs" / "quality.md"
BEGIN, END = "<!-- frontier: begin -->", "<!-- frontier: end -->"
STORIES = SHARED / "data" / "tinystories"
PRESETS = ("fast", "balanced", "best")
WEIGHTS = ("0.5", "0.6", "0.7", "2:4")
CHANNELS = ("0.25", "0.5")
SMALL = ("stories260K", "stories3M-fp16")
# SparseGPT of llm-compressor 0.14 by the same protocol, once; peers.py measures it again.
PEER_NAME = "llm-compressor"
PEER = {
    "stories260K": {"0.5": 19.4, "0.7": 123.0, "2:4": 33.0},
    "stories3M-fp16": {"0.5": 15.79, "0.6": 37.3, "0.7": 110.8, "2:4": 33.3},
}
GPT2 = "shakespeare-gpt2-357K"


class Case(NamedTuple):
    """One run. `target` is a sparsity or N:M; `evaluate` text files, by name."""

    part: str
    model: str
    kind: str
    target: str
    preset: str
    calibrate: str
    evaluate: str

    @property
    def key(self) -> str:
        return " ".join(self)


def cases(part: str, models: list[str], presets: list[str]) -> Iterator[Case]:
    """What a part is made of."""
    if part == "weights":
        own = ("stories", "stories")
        yield from (Case(part, m, "weight", t, p, *own) for m in models for t in WEIGHTS for p in presets)
    elif part == "channels":
        own = ("stories", "stories")
        yield from (Case(part, m, "channel", t, p, *own) for m in models for t in CHANNELS for p in presets)
    elif part == "domains":
        yield from (Case(part, m, "weight", "0.5", p, "stories", "foreign") for m in models for p in presets)
    else:
        yield from (Case(part, GPT2, "weight", "0.5", p, "plays", "plays") for p in presets)
        yield from (Case(part, "embedded", "weight", "0.5", p, "stdlib", "stdlib") for p in presets)


def texts(name: str) -> dict[str, str]:
    """Name in a case -> flags: what is calibrated on, and what is evaluated on."""
    stories, plays = STORIES / "eval.jsonl", SHARED / "data" / "shakespeare" / "input.txt"
    known = {
        "stories": {"calibrate": STORIES / "calibrate.jsonl", "evaluate": stories},
        "foreign": {"evaluate": f"{stories},{plays},{SHARED / 'data' / 'web' / 'c4.jsonl'}"},
        "plays": {"calibrate": plays, "samples": 256, "length": 96},  # evaluated on what is held out of it
        "stdlib": {"calibrate": "stdlib", "evaluate": "stdlib:prose,stdlib:code"},
    }
    return {flag: str(value) for flag, value in known[name].items()}


def run(case: Case, threads: int) -> dict[str, Any]:
    """Prunes once: seconds of the prune stage, peak memory, perplexity before and after on each text."""
    model = case.model if case.model == "embedded" else str(SHARED / "models" / case.model)
    what = ["--pattern", case.target] if ":" in case.target else ["--sparsity", case.target]
    asked = texts(case.calibrate) | texts(case.evaluate)
    flags = [word for name, value in asked.items() for word in (f"--{name}", value)]
    with tempfile.TemporaryDirectory(prefix="secateur-frontier-") as folder:
        words = ["prune", model, "--sites", case.kind, *what, "--quality", case.preset, *flags]
        words += ["--no-speed", "--quiet", "--out", folder + "/out"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [sys.executable, "-m", "secateur", *words], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"secateur {' '.join(words)}\n{done.stderr[-2000:]}")
        report = json.loads((Path(folder) / "out" / "report.json").read_text())
    stages = {stage["name"]: stage for stage in report["stages"]}
    found = report["evaluation"]
    tuned = report.get("reconstruction") or []
    return case._asdict() | {
        "seconds": stages["prune"]["seconds"],
        "cpu_seconds": stages["prune"]["cpu_seconds"],
        "peak_bytes": stages["prune"]["peak_memory_bytes"],
        "threads": threads,
        "before": {Path(name).name: s["perplexity"] for name, s in found["before"]["sets"].items()},
        "after": {Path(name).name: s["perplexity"] for name, s in found["after"]["sets"].items()},
        "undone": sum(not r["steps"] for r in tuned),
        "command": "secateur " + " ".join(words[:-2]).replace(str(SHARED), "shared"),
    }


def perplexity(row: dict[str, Any], side: str = "after") -> float:
    """Over the first text of a run."""
    return float(next(iter(row[side].values())))


def table(rows: list[dict[str, Any]], part: str) -> str:
    """One line a model and target; a column for each preset, and the time relative to `fast`."""
    mine = [row for row in rows if row["part"] == part]
    presets = [p for p in PRESETS if any(row["preset"] == p for row in mine)]
    head = ["model", "cut", "text", "dense", *presets, *(f"{p}: time" for p in presets if p != "fast")]
    head += [PEER_NAME] if part == "weights" else []
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3)]
    for key in dict.fromkeys((r["model"], r["kind"], r["target"], r["evaluate"]) for r in mine):
        of = {r["preset"]: r for r in mine if (r["model"], r["kind"], r["target"], r["evaluate"]) == key}
        for text in next(iter(of.values()))["after"]:
            line = [key[0], f"{key[1]} {key[2]}", Path(text).name, f"{next(iter(of.values()))['before'][text]:.3g}"]
            line += [f"{of[p]['after'][text]:.4g}" if p in of else "" for p in presets]
            base = of.get("fast")
            for p in presets:
                if p != "fast":
                    line.append(f"{of[p]['cpu_seconds'] / base['cpu_seconds']:.1f}x" if p in of and base else "")
            if part == "weights":
                known = peers(key[0]).get(key[2])
                line.append(f"{known:.4g}" if known else "")
            lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def peers(model: str) -> dict[str, float]:
    """Target -> perplexity of the best peer: medians of results/peers.json, else what was measured before."""
    file = RESULTS / "peers.json"
    runs = json.loads(file.read_text())["runs"] if file.exists() else []
    mine = [r for r in runs if r["tool"] == "llm-compressor" and r["model"] == model and r["method"] == "sparsegpt"]
    found: dict[str, list[float]] = {}
    for run in mine:
        found.setdefault(run["target"], []).append(run["perplexity"])
    return PEER.get(model, {}) | {target: statistics.median(values) for target, values in found.items()}


def draw(rows: list[dict[str, Any]]) -> list[str]:
    """One picture a model and axis; their file names."""
    made = []
    weights = [r for r in rows if r["part"] == "weights" and ":" not in r["target"]]
    for model in dict.fromkeys(r["model"] for r in weights):
        mine = [r for r in weights if r["model"] == model]
        if len(mine) < len(PRESETS):
            continue  # nothing to compare
        by_sparsity = {p: [(float(r["target"]), perplexity(r)) for r in mine if r["preset"] == p] for p in PRESETS}
        of_peer = peers(model)
        by_sparsity[PEER_NAME] = sorted((float(t), value) for t, value in of_peer.items() if ":" not in t)
        sparsities = sorted({float(r["target"]) for r in mine})
        by_sparsity["dense"] = [(s, perplexity(mine[0], "before")) for s in sparsities]
        by_time = {
            f"{s:.0%}": [(r["cpu_seconds"], perplexity(r)) for r in mine if float(r["target"]) == s]
            for s in sparsities
        }
        for name, series, across, log in (
            ("sparsity", by_sparsity, "sparsity of the decoder's weights", False),
            ("seconds", by_time, "processor seconds of pruning", True),
        ):
            file = RESULTS / f"frontier-{model}-{name}.svg"
            full = {k: v for k, v in series.items() if v}
            line_chart(file, model, full, across, "perplexity", (log, True), ("dense",))
            made.append(file.name)
    return made


def page(rows: list[dict[str, Any]], pictures: Iterable[str]) -> str:
    parts = [
        "# Frontier",
        "`python benchmarks/frontier.py`; perplexity, and the prune stage's processor time relative to `fast`.",
    ]
    for part in dict.fromkeys(r["part"] for r in rows):
        parts += [f"## {part}", table(rows, part)]
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def read(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text()) if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", default=list(SMALL), help="of the stories parts")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--targets", nargs="+", help="only these sparsities and patterns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draw", action="store_true", help="run nothing")
    given = parser.parse_args()
    file = RESULTS / "frontier.json"
    wanted = [c for part in given.part for c in cases(part, given.models, given.presets)]
    for case in [] if given.draw else wanted:
        known = {Case(*(r[field] for field in Case._fields)) for r in read(file)}
        if case in known or (given.targets and case.target not in given.targets):
            continue
        row = run(case, given.threads)
        print(f"{case.key}: {row['after']}, {row['cpu_seconds']:.0f} s", flush=True)
        RESULTS.mkdir(exist_ok=True)
        # Read again: parts may be running side by side.
        file.write_text(json.dumps([*read(file), row], indent=1) + "\n")
    rows = sorted(read(file), key=lambda r: [PARTS.index(r["part"]), r["model"], r["kind"], r["target"]])
    pictures = draw(rows)
    (RESULTS / "frontier.md").write_text(page(rows, pictures))
    tables = [f"### {TITLES[part]}\n\n{table(rows, part)}" for part in dict.fromkeys(r["part"] for r in rows)]
    shown = [f"![{name}](../benchmarks/results/{name})" for name in pictures]
    between_marks(DOCS, BEGIN, END, "\n\n".join([*tables, *shown]))
    print("\n\n".join(table(rows, part) for part in dict.fromkeys(r["part"] for r in rows)))


TITLES = {
    "weights": "Single weights",
    "channels": "FFN channels",
    "domains": "Text of other domains than the calibration's",
    "models": "Other models",
}
PARTS = tuple(TITLES)

if __name__ == "__main__":
    main()
