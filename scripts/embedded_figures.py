"""Remakes what quotes figures of the embedded model: benchmarks/results/embedded.json from real runs, and from that
the README's picture (docs/show.svg) and quick start, and the worked example of docs/search.md.

python scripts/embedded_figures.py            run, and write all; what is in out/figures already isn't run again
python scripts/embedded_figures.py --texts    write the pages from embedded.json
python scripts/embedded_figures.py --check    run nothing; exit with 1 if a page isn't what embedded.json says
"""

from __future__ import annotations

import io
import json
import platform
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _pages import keep
from rich.terminal_theme import SVG_EXPORT_THEME

from secateur.report import numbers as fmt
from secateur.report.terminal.console import Console
from secateur.report.terminal.picture import print_picture
from secateur.report.terminal.search import print_search
from secateur.report.verdict import verdict

ROOT = Path(__file__).resolve().parents[1]
RESULT, RUNS = ROOT / "benchmarks" / "results" / "embedded.json", ROOT / "out" / "figures"
README, SEARCH, PICTURE = ROOT / "README.md", ROOT / "docs" / "search.md", ROOT / "docs" / "show.svg"
SMALL = "secateur prune embedded --sites channel --sparsity 0.25 --calibrate stdlib --samples 32 --out out/small"
FOUND = "secateur search embedded --want params=0.8x --samples 32 --length 128 --out out/found"
ALIKE = "secateur prune embedded --sites channel --params 80% --samples 32 --length 128 --out out/alike"
COMMANDS = {"small": SMALL, "found": FOUND, "alike": ALIKE}
MARK = "<!-- {}: written by scripts/embedded_figures.py -->"
KINDS = {
    "channel": "channels alone",
    "kv_group": "KV groups alone",
    "query_head": "query heads alone",
    "attention": "attentions alone",
    "ffn": "feed-forward networks alone",
    "layer": "layers alone",
}
SHOWN = ("model", "sites", "sparsity", "parameters", "evaluation", "versions", "device")
WIDTH = 118
Figures = Mapping[str, Any]


def measured() -> Figures:
    """Runs what isn't there yet, without timing it, and keeps of it what pages say."""
    RUNS.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"python": platform.python_version(), "commands": COMMANDS}
    for name, command in COMMANDS.items():
        if not (RUNS / "out" / name / "report.json").is_file():
            words = shlex.split(command)[1:]
            subprocess.run([sys.executable, "-m", "secateur", *words, "--no-speed", "--quiet"], check=True, cwd=RUNS)
        report = json.loads((RUNS / "out" / name / "report.json").read_text(encoding="utf-8"))
        found[name] = {key: report[key] for key in SHOWN if key in report}
    search = json.loads((RUNS / "out" / "found" / "search.json").read_text(encoding="utf-8"))
    kept = ("wishes", "layers", "perplexity", "hidden", "formats", "finalists", "rank_correlation", "limited_by")
    candidates = [{key: one[key] for key in ("pieces", "measured", "chosen")} for one in search["candidates"]]
    return {**found, "search": {**{key: search[key] for key in kept}, "candidates": candidates}}


def picture(found: Figures) -> str:
    """The end of `make demo` as a terminal shows it: what became of the model, in bars."""
    console = Console(file=io.StringIO(), record=True, width=84, force_terminal=True, markup=False, highlight=False)
    console.print(f"$ {SMALL}", style="bold")
    console.print("$ secateur show out/small", style="bold")
    print_picture(found["small"], "out/small", console)
    return console.export_svg(title="secateur", theme=SVG_EXPORT_THEME, unique_id="show")


def quick_start(found: Figures) -> str:
    said = verdict(found["small"])
    assert said is not None
    tokens = found["small"]["evaluation"]["before"]["tokens"]
    what = (
        f"The second line takes a quarter of the FFN channels. What that comes to, on {tokens:,} tokens held out of "
        f"CPython {found['python']}'s own text, is shown at the end:"
    )
    return f"{filled(what)}\n\n> {said.judgement}. {said.why}"


def example(found: Figures) -> str:
    """What the search prints, its candidates by kind, and the same share taken alike from all layers."""
    shown = io.StringIO()
    print_search(found["search"], Path("out/found"), Console(file=shown, width=WIDTH, markup=False, highlight=False))
    printed = "\n".join(filled(line.rstrip()) for line in shown.getvalue().strip().splitlines())
    rows = "\n".join(f"| {words} | {kl:.3f} |" for words, kl in by_kind(found["search"]["candidates"]))
    alike, own = (found[name]["evaluation"]["after"] for name in ("alike", "found"))
    before = (
        "Everything might have gone, from anywhere: channels, KV groups, query heads, attentions, feed-forward "
        "networks, layers. Each bar is a layer, as high as the share of it that went. Among the candidates are the "
        "best ones of each kind alone (KL in nats per token, before the repair):"
    )
    after = (
        f"The same share taken alike from the channels of every layer leaves {fmt.short(alike['parameters'])} "
        f"parameters and a perplexity of {fmt.number(alike['perplexity'])}; the search's result has "
        f"{fmt.short(own['parameters'])} and {fmt.number(own['perplexity'])}. Where a model is deeper, or a wish is "
        "about the cache or about time, more heads and layers go too."
    )
    return "\n".join(
        [
            f"    {FOUND}\n\n```text\n{printed}\n```\n\n{filled(before)}\n",
            f"| what goes | KL |\n|---|---:|\n{rows}\n\n    {ALIKE}\n\n{filled(after)}",
        ]
    )


def filled(line: str) -> str:
    """A paragraph, or a line of a terminal, no wider than a page."""
    return textwrap.fill(line, WIDTH) if len(line) > WIDTH else line


def by_kind(candidates: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """What was chosen, then the best candidate of each kind that one was made of alone."""
    kinds = [{site.rpartition(".")[2] for site, _ in one["pieces"]} for one in candidates]
    chosen = next(number for number, one in enumerate(candidates) if one["chosen"])
    named = " and ".join(sorted(KINDS[kind].removesuffix(" alone") for kind in kinds[chosen]))
    found = [(f"as chosen: {named}", candidates[chosen]["measured"])]
    for kind, words in KINDS.items():
        alone = [one["measured"] for one, own in zip(candidates, kinds, strict=True) if own == {kind}]
        found += [(words, min(alone))] if alone else []
    return found


def put(text: str, name: str, made: str) -> str:
    """A page with what was made between its marks."""
    begin, end = MARK.format(name), f"<!-- end of {name} -->"
    head, opened, rest = text.partition(begin)
    assert opened, name
    return f"{head}{begin}\n\n{made}\n\n{end}{rest.partition(end)[2]}"


def texts(found: Figures) -> dict[Path, str]:
    return {
        PICTURE: re.sub(r"[ \t]+$", "", picture(found), flags=re.MULTILINE),
        README: put(README.read_text(encoding="utf-8"), "quick start", quick_start(found)),
        SEARCH: put(SEARCH.read_text(encoding="utf-8"), "worked example", example(found)),
    }


def main() -> None:
    if not {"--check", "--texts"} & set(sys.argv[1:]):
        RESULT.write_text(json.dumps(measured(), indent=1) + "\n", encoding="utf-8")
    wanted = texts(json.loads(RESULT.read_text(encoding="utf-8")))
    keep(wanted, f"not what {RESULT.name} says; run python scripts/embedded_figures.py --texts")


if __name__ == "__main__":
    main()
