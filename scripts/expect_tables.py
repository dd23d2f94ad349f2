"""Writes the tables of docs/expect.md: models of three sizes on three machines by the formulas of `inspect
--forecast`, and what was run beside what was forecast (benchmarks/forecast.py).

python scripts/expect_tables.py            write
python scripts/expect_tables.py --check    exit with 1 if the page isn't what formulas and results say
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from _pages import keep

from secateur.analysis.forecast import WAYS, Machine, Shape, llama, row
from secateur.report import numbers as fmt

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULT = ROOT / "docs" / "expect.md", ROOT / "benchmarks" / "results" / "forecast.json"
BEGIN, END = "<!-- tables: written by scripts/expect_tables.py -->", "<!-- end of tables -->"
MODELS: dict[str, Shape] = {
    "1B": llama(16, 2048, 8192, (32, 8, 64), 128_256, tied=True),
    "8B": llama(32, 4096, 14_336, (32, 8, 128), 128_256, tied=False),
    "70B": llama(80, 8192, 28_672, (64, 8, 128), 128_256, tied=False),
}
MACHINES = (
    Machine("16 CPU cores", 1.0e12, 56 * 10**9, 10**13),
    Machine("one GPU", 5.0e13, 75 * 10**9, 10**13),
    Machine("eight GPUs", 5.0e13, 75 * 10**9, 10**13, 8),
)


def tables() -> str:
    return "\n\n".join([*map(of_model, MODELS), checked()])


def of_model(name: str) -> str:
    """Time, memory and disk of one model."""
    shape = MODELS[name]
    heads = [f"{machine.name}: time" for machine in MACHINES]
    lines = [
        f"### A Llama of {name} ({fmt.short(shape.parameters)} parameters, {fmt.size(shape.bytes_on_disk)})",
        "",
        f"| cut | quality | {' | '.join(heads)} | memory at least | hidden states beside it | disk |",
        "|---|---|" + "---:|" * (len(heads) + 3),
    ]
    for way in WAYS:
        found = [row(shape, machine, way) for machine in MACHINES]
        times = " | ".join(fmt.seconds(each["seconds"]) for each in found)
        least = found[0]["least_memory_bytes"]
        states = found[0]["memory_bytes"] - least + found[0]["disk_bytes"] - 2 * shape.bytes_on_disk
        sizes = [fmt.size(size) for size in (least, states, 2 * shape.bytes_on_disk)]
        lines.append(f"| {way.cut} | `{way.quality}` | {times} | {' | '.join(sizes)} |")
    return "\n".join(lines)


def checked() -> str:
    """What was run, beside what was forecast."""
    if not RESULT.is_file():
        return "### What was run\n\nNothing yet: `python benchmarks/forecast.py` compares these formulas with runs."
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    lines = [
        "### What was run",
        "",
        textwrap.fill(
            f"`python benchmarks/forecast.py` on {found['processor']}, {fmt.threads(found['threads'])}, load "
            f"{found['load']:.1f} at most on {found['cores']} cores; {found['samples']} sequences of "
            f"{found['length']} tokens. A load above the cores means that other work ran beside it, and slowed both "
            "the measuring of the machine's speed and the runs; the processor's own time hardly feels that.",
            118,
        ),
        "",
        "| model | cut | quality | time: forecast | run | of that on the processor | memory: forecast | run |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for each in found["rows"]:
        times = " | ".join(fmt.seconds(each[key]) for key in ("forecast_seconds", "seconds", "cpu_seconds"))
        sizes = f"{fmt.size(each['forecast_memory_bytes'])} | {fmt.size(each['peak_memory_bytes'])}"
        lines.append(f"| {each['model']} | {each['cut']} | `{each['quality']}` | {times} | {sizes} |")
    return "\n".join(lines)


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    tail = rest.partition(END)[2]
    new = f"{head}{BEGIN}\n\n{tables()}\n\n{END}{tail}"
    keep({PAGE: new}, "not what the formulas say; run python scripts/expect_tables.py")


if __name__ == "__main__":
    main()
