"""What calibration on one domain costs the other: prose, code, and half of each, on two models.

    python benchmarks/domains.py                       everything, three draws of the calibration text
    python benchmarks/domains.py --models embedded --cuts channels --seeds 0
    python benchmarks/domains.py --draw                only the tables, from what is there

Each run is `secateur prune` in a process of its own, calibrated on one text or on both by halves, evaluated on
held-out text of both. Its figures go to results/domains.json at once, and a run that is there already isn't repeated.
The tables also go into docs/calibration.md. `embedded` knows both domains: Python's prose and code. `stories3M-fp16`
knows stories only; its code is every second document of ../shared/data/code, evaluated on the others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from _docs import between_marks

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs" / "calibration.md"
BEGIN, END = "<!-- domains: begin -->", "<!-- domains: end -->"
MODELS = ("embedded", "stories3M-fp16")
CUTS = {
    "channels": "--sites channel --sparsity 0.25 --method obs",
    "weights": "--sparsity 0.5",
}
# Which text a run is calibrated on, where P and C stand for the two sources.
TEXTS = {"prose": "{P}", "code": "{C}", "half of each": "{P}:0.5,{C}:0.5"}
DOMAINS = ("prose", "code")


class Case(NamedTuple):
    model: str
    cut: str
    calibrate: str
    seed: int


def sources(model: str, work: Path) -> dict[str, tuple[str, str]]:
    """Domain -> what is calibrated on, and what is evaluated on."""
    if model == "embedded":  # the held-out files of stdlib are evaluated
        return {domain: (f"stdlib:{domain}", f"stdlib:{domain}") for domain in DOMAINS}
    stories = SHARED / "data" / "tinystories"
    code = (SHARED / "data" / "code" / "github.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    found = {}
    for domain, calibrate, evaluate in (
        ("prose", (stories / "calibrate.jsonl").read_text(), (stories / "eval.jsonl").read_text()),
        ("code", "".join(code[::2]), "".join(code[1::2])),
    ):
        pair = work / f"{domain}.jsonl", work / f"{domain}-held-out.jsonl"
        for file, text in zip(pair, (calibrate, evaluate), strict=True):
            file.write_text(text, encoding="utf-8")
        found[domain] = (str(pair[0]), str(pair[1]))
    return found


def run(case: Case, work: Path, threads: int) -> dict[str, Any]:
    """Prunes once; perplexity and bits per byte of both domains, before and after."""
    of = sources(case.model, work)
    model = case.model if case.model == "embedded" else str(SHARED / "models" / case.model)
    calibrate = TEXTS[case.calibrate].format(P=of["prose"][0], C=of["code"][0])
    evaluate = {domain: of[domain][1] for domain in DOMAINS}
    words = ["prune", model, *CUTS[case.cut].split(), "--calibrate", calibrate, "--seed", str(case.seed)]
    words += ["--evaluate", ",".join(evaluate.values()), "--no-speed", "--no-explain", "--quiet"]
    out = work / "out"
    done = subprocess.run(
        [sys.executable, "-m", "secateur", *words, "--overwrite", "--out", str(out)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"secateur {' '.join(words)}\n{done.stderr[-2000:]}")
    report = json.loads((out / "report.json").read_text())
    sets = {side: report["evaluation"][side]["sets"] for side in ("before", "after")}
    figures = ("perplexity", "bits_per_byte", "tokens", "windows")
    return (
        case._asdict()
        | {
            side: {domain: {key: sets[side][name][key] for key in figures} for domain, name in evaluate.items()}
            for side in sets
        }
        | {
            "cpu_seconds": next(s["cpu_seconds"] for s in report["stages"] if s["name"] == "prune"),
            "command": "secateur " + " ".join(words).replace(f"{work}/", "").replace(f"{SHARED}/models/", ""),
        }
    )


def cell(rows: list[dict[str, Any]], domain: str) -> str:
    """The median over the seeds, the range where there are several, and what it is over the untouched model's."""
    values = [row["after"][domain]["perplexity"] for row in rows]
    middle, before = statistics.median(values), rows[0]["before"][domain]["perplexity"]
    span = f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
    return f"{middle:.4g}{span}, {middle / before - 1:+.1%}"


def table(rows: list[dict[str, Any]], model: str, cut: str) -> str:
    """A line for each calibration text; a column for each domain that was evaluated."""
    lines = [["calibrated on", *(f"perplexity of {domain}" for domain in DOMAINS)], ["---", "---", "---"]]
    mine = [row for row in rows if (row["model"], row["cut"]) == (model, cut)]
    lines.append(["not pruned", *(f"{mine[0]['before'][domain]['perplexity']:.4g}" for domain in DOMAINS)])
    for text in TEXTS:
        of = [row for row in mine if row["calibrate"] == text]
        if of:
            lines.append([text, *(cell(of, domain) for domain in DOMAINS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(rows: list[dict[str, Any]]) -> str:
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        for cut in CUTS:
            mine = [row for row in rows if (row["model"], row["cut"]) == (model, cut)]
            if mine:
                seen = mine[0]["before"]
                sizes = " and ".join(f"{seen[d]['tokens']:,} tokens of {d}" for d in DOMAINS)
                head = f"### {model}, {cut}\n\n`{CUTS[cut]}`; evaluated on {sizes}, none of them calibrated on."
                parts.append(f"{head}\n\n{table(rows, model, cut)}")
    return "\n\n".join(parts)


def read() -> list[dict[str, Any]]:
    file = RESULTS / "domains.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def write(rows: list[dict[str, Any]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    rows = sorted(rows, key=lambda row: [MODELS.index(row["model"]), list(CUTS).index(row["cut"]), row["seed"]])
    (RESULTS / "domains.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    head = "# Calibration domains\n\n`python benchmarks/domains.py`; median over the seeds of the calibration's draw."
    (RESULTS / "domains.md").write_text(f"{head}\n\n{tables(rows)}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--cuts", nargs="+", choices=CUTS, default=list(CUTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the calibration's draw")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draw", action="store_true", help="run nothing")
    given = parser.parse_args()
    known = {Case(*(row[field] for field in Case._fields)) for row in read()}
    wanted = [Case(m, c, t, s) for s in given.seeds for m in given.models for c in given.cuts for t in TEXTS]
    with tempfile.TemporaryDirectory(prefix="secateur-domains-") as work:
        for case in [] if given.draw else wanted:
            if case not in known:
                row = run(case, Path(work), given.threads)
                after = {domain: round(figures["perplexity"], 3) for domain, figures in row["after"].items()}
                print(*case, after, f"{row['cpu_seconds']:.0f} s", flush=True)
                write([*read(), row])  # read again: models may be running side by side
    rows = read()
    write(rows)
    between_marks(DOCS, BEGIN, END, tables(rows))
    print(tables(rows))


if __name__ == "__main__":
    main()
