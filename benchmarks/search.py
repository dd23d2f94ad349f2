"""A search over everything against what cuts one kind of site alike, and against allocations, at equal size.

    python benchmarks/search.py quality --model stories3M-fp16 --share 0.8,0.6
    python benchmarks/search.py quality --model path/to/SmolLM2-135M --share 0.8 --how search --also "--samples 32"
    python benchmarks/search.py latency --model path/to/model
    python benchmarks/search.py size --model stories3M-fp16 --share 0.6
    python benchmarks/search.py table

`quality`: models with this share of the parameters left, calibrated and repaired alike (`balanced`), and the
perplexity of `eval.jsonl` by the judge of `_protocol`. One kind of site cut alike in every layer, channels and heads
with each allocation, and the search. A rival that comes out more than a hundredth smaller or larger than asked for is
run again for so much more or less, twice at most; the nearest counts, and all runs are in its row. `latency`: a wish
for decoding and one for prefill, and what the result takes, timed as it is. `size`: a wish for bytes, kept with units
alone and with zeros of single weights beside them. Each row is written as it comes, and rows
that are there aren't measured again; `--how` picks some of them. `--also` is said to every run. Times are the
processor's seconds of one thread; the clock's are in the rows, with the load of the machine.
Results: results/search.json and .md, and docs/search.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _docs import between_marks
from _protocol import context_of, perplexity, read_texts
from transformers import AutoTokenizer

import secateur

LATENCIES = ["latency", "prefill"]
SIZES = {"units": [], "units and zeros": ["--zeros", "0.3,0.4,0.5,0.6"]}
RESULTS = Path(__file__).parent / "results" / "search.json"
PAGE = Path(__file__).parents[1] / "docs" / "search.md"
TOGETHER = "channel,kv_group"
KINDS = ("channel", "kv_group", "layer", "hidden")
ALLOCATIONS = ("local", "global", "owl", "sensitivity", "evolve")
WHOLE = ("layer",)  # goes in steps of more than a hundredth
RUNS, EQUAL = 3, 0.01
HOW = (*KINDS, *ALLOCATIONS, "search")


def command(how: str, share: float) -> list[str]:
    """The words of a run, without the model and what all runs have."""
    if how == "search":
        return ["search", "--want", f"params={share}x"]
    if how in KINDS:
        return ["prune", "--sites", how, "--params", f"{100 * share:g}%"]
    return ["prune", "--sites", TOGETHER, "--allocate", how, "--params", f"{100 * share:g}%"]


def ran(model: Path, text: Path, words: list[str], out: Path, also: list[str]) -> dict[str, Any]:
    """What one run says of itself: report, seconds, load."""
    name, *told = words
    told += ["--calibrate", str(text), "--no-speed", "--no-explain", "--quiet", *also]
    told += [] if "--zeros" in words else ["--evaluate", "none"]  # forms are compared on what the text holds out
    begin, load, busy = time.perf_counter(), os.getloadavg()[0], of_children()
    whole = [sys.executable, "-m", "secateur", name, str(model), *told, "--out", str(out), "--threads", "1"]
    done = subprocess.run(whole, capture_output=True, text=True)
    if not (out / "report.json").is_file():  # a search whose wish isn't held ends with 1, and there's a model
        return {"refused": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
    found = {"seconds": time.perf_counter() - begin, "cpu_seconds": of_children() - busy, "load": load}
    report = json.loads((out / "report.json").read_text())
    return found | {"parameters": report["parameters"]["after"], "before": report["parameters"]["before"]}


def of_children() -> float:
    """Processor seconds of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def quality_row(model: Path, stories: Path, share: float, how: str, also: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        row: dict[str, Any] = {"model": model.name, "share": share, "how": how, "also": " ".join(also)}
        found, asked = list[tuple[dict[str, Any], Path]](), share
        for number in range(RUNS):
            out = Path(work) / f"out{number}"
            found.append((ran(model, stories / "calibrate.jsonl", command(how, asked), out, also), out))
            if "refused" in found[-1][0] or how in ("search", *WHOLE) or abs(off(found[-1][0], share)) <= EQUAL:
                break
            asked = round(min(0.99, max(0.01, asked - off(found[-1][0], share))), 4)
        sized = [one for one in found if "refused" not in one[0]] or found[:1]
        best, out = min(sized, key=lambda one: abs(off(one[0], share)) if "refused" not in one[0] else 1.0)
        row |= best | {"shares_tried": [off(one, share) + share for one, _ in found if "refused" not in one]}
        if "refused" not in row:
            row["perplexity"] = judged(out, model, stories)
        if (out / "search.json").is_file():
            found = json.loads((out / "search.json").read_text())
            row["rank_correlation"], row["trials"] = found["rank_correlation"], len(found["candidates"])
            row["pieces"] = next(one["pieces"] for one in found["candidates"] if one["chosen"])
        return row


def off(row: dict[str, Any], share: float) -> float:
    """By how much more of the parameters is left than was asked for."""
    return float(row["parameters"] / row["before"] - share)


def judged(folder: Path, model: Path, stories: Path) -> float:
    texts = read_texts(stories / "eval.jsonl")
    loaded = secateur.load(folder, device="cpu", dtype="float32")
    return perplexity(loaded, AutoTokenizer.from_pretrained(model), texts, context_of(model))


def latency_row(model: Path, stories: Path, share: float, about: str, also: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out"
        row = {"model": model.name, "share": share, "how": about}
        row |= ran(model, stories / "calibrate.jsonl", ["search", "--want", f"{about}={share}x"], out, also)
        if "refused" not in row:
            found = json.loads((out / "search.json").read_text())
            row |= {"wish": found["wishes"][0], "timed": found["timed"]}
        return row


def size_row(model: Path, stories: Path, share: float, how: str, also: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out"
        row = {"model": model.name, "share": share, "how": how, "also": " ".join(also)}
        words = ["search", "--want", f"size={share}x", *SIZES[how]]
        row |= ran(model, stories / "calibrate.jsonl", words, out, also)
        if "refused" not in row:
            found = json.loads((out / "search.json").read_text())
            row |= {"size": found["wishes"][0], "forms": found["formats"], "perplexity": judged(out, model, stories)}
        return row


def sizes(rows: list[dict[str, Any]]) -> list[str]:
    """What a wish for bytes comes to, with zeros beside units and without."""
    lines = [
        "",
        "| model | size | what may go | stored | bytes | perplexity | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        form = next((one["type"] for one in row["forms"] if one["chosen"]), "as it is")
        got = row["size"]["got"] / row["size"]["whole"]
        cells = (row["model"], f"{row['share']:g}x", row["how"], form, f"{got:.3f}x", f"{row['perplexity']:.2f}")
        lines.append(f"| {' | '.join(cells)} | {row.get('cpu_seconds', row['seconds']):.0f} |")
    return lines if rows else []


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["Perplexity of eval.jsonl after the same repair; behind it the parameters that are left.", ""]
    lines += ["| model | share | " + " | ".join(HOW) + " |", "|---|---|" + "---|" * len(HOW)]
    own = [row for row in rows if row["how"] in HOW]
    for name, share in dict.fromkeys((row["model"], row["share"]) for row in own):
        found = {row["how"]: row for row in own if (row["model"], row["share"]) == (name, share)}
        lines.append(f"| {name} | {share:g} | " + " | ".join(cell(found.get(how)) for how in HOW) + " |")
    lines += ["", "| model | share | against | change | time of the search / of `channel` | rank correlation |"]
    lines.append("|---|---|---|---|---|---|")
    for name, share in dict.fromkeys((row["model"], row["share"]) for row in own):
        found = {row["how"]: row for row in own if (row["model"], row["share"]) == (name, share)}
        if "perplexity" in found.get("search", {}):
            lines += compared(name, share, found)
    lines += [
        "",
        *(f"{row['model']}, {row['share']:g}, {row['how']}: {row['note']}." for row in rows if "note" in row),
    ]
    busy = max((row["load"] for row in rows if "load" in row), default=0.0)
    lines.append(f"Load of the machine while it ran: up to {busy:.1f}. Seconds are the processor's, of one thread.")
    lines += sizes([row for row in rows if "size" in row])
    timed = [row for row in rows if "wish" in row]
    if timed:
        lines += ["", "| model | wish | untouched | limit | measured | off by |", "|---|---|---|---|---|---|"]
    for row in timed:
        wish = row["wish"]
        values = " | ".join(f"{1000 * wish[key]:.2f} ms" for key in ("whole", "limit", "got"))
        lines.append(f"| {row['model']} | {wish['wish']} | {values} | {wish['got'] / wish['limit'] - 1:+.1%} |")
    return "\n".join(lines) + "\n"


def compared(name: str, share: float, found: dict[str, dict[str, Any]]) -> list[str]:
    """The search against the best single kind, and against the best allocation."""
    lines, own = [], found["search"]
    for rivals in (KINDS, ALLOCATIONS):
        known = [found[how] for how in rivals if "perplexity" in found.get(how, {})]
        if not known:
            continue
        best = min(known, key=lambda row: row["perplexity"])
        # The clock's seconds say little of this: other runs were beside.
        mine, of_channel = own.get("cpu_seconds"), found.get("channel", {}).get("cpu_seconds")
        times = mine / of_channel if mine and of_channel else None
        change = f"{own['perplexity'] / best['perplexity'] - 1:+.1%}"
        cells = (name, f"{share:g}", best["how"], change, f"{times:.1f}" if times else "–")
        lines.append(f"| {' | '.join(cells)} | {own['rank_correlation'] or 0:.2f} |")
    return lines


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return "refused" if "refused" in row else f"{row['perplexity']:.2f}, {row['parameters'] / row['before']:.3f}"


PARTS = {"quality": (quality_row, HOW), "latency": (latency_row, LATENCIES), "size": (size_row, tuple(SIZES))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("quality", "latency", "size", "table"))
    parser.add_argument("--model", default="stories3M-fp16", help="in shared/models, or a folder")
    parser.add_argument("--share", default="0.8,0.6")
    parser.add_argument("--how", help="some of the rows, such as channel,search")
    parser.add_argument("--also", default="", help="more words for every run, such as '--samples 32 --length 512'")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    given = parser.parse_args()
    rows = json.loads(given.results.read_text()) if given.results.exists() else []
    stories = given.shared / "data" / "tinystories"
    model = next(path for path in (given.shared / "models" / given.model, Path(given.model)) if path.is_dir())
    judge, every = PARTS.get(given.part, (quality_row, ()))
    asked = given.how.split(",") if given.how else every
    if strange := {*asked} - {*every}:
        parser.error(f"--how {strange.pop()} is none of {', '.join(every)}")
    shares = [0.7] if given.part == "latency" else [float(share) for share in given.share.split(",")]
    for share in shares:
        for how in asked:
            if any((row["model"], row["share"], row["how"]) == (model.name, share, how) for row in rows):
                continue
            rows.append(judge(model, stories, share, how, given.also.split()))
            given.results.write_text(json.dumps(rows, indent=1) + "\n")
            print(rows[-1], flush=True)
    given.results.with_suffix(".md").write_text(table(rows))
    if given.results == RESULTS:
        between_marks(PAGE, "<!-- figures: begin -->", "<!-- figures: end -->", table(rows).rstrip())


if __name__ == "__main__":
    main()
