"""The rows of `real.py`, and the tables and the picture of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _plot import bar_chart

PARTS = {"weights": "50 % of the weights", "pattern": "2:4", "channels": "25 % of the FFN channels"}
SETS = ("WikiText-2", "C4", "stories", "code", "plays")
MEBI = 2**20
SHORT = {"float32": "fp32", "bfloat16": "bf16"}
HEAD = ["tool", "method", *SETS, "nats above dense, WikiText-2", "share", "pruning, s", "CPU, s", "above, MiB"]
RULE = ["---", "---", *("---:" for _ in HEAD[2:])]


@dataclass(frozen=True)
class Row:
    """One run of one tool: what it cost, and what the judge found.

    Args:
        samples: calibration sequences.
        seconds, cpu: of the pruning alone, wall clock; of the whole process, all threads.
        above: bytes of memory at the peak of the pruning above the peak before it; below zero where opening the model
            took more than pruning it.
        load: the machine's load average before the start.
        perplexity: of each text.
        dtype: in which the model was computed; the judge's is always fp32.
    """

    part: str
    tool: str
    name: str
    samples: int
    threads: int
    seconds: float
    cpu: float
    above: int
    load: float
    perplexity: dict[str, float]
    zeros: float
    decoder_numbers: int
    dtype: str = "float32"

    @property
    def method(self) -> str:
        """With its number format, where that isn't fp32."""
        return self.name if self.dtype == "float32" else f"{self.name}, {SHORT[self.dtype]}"

    def nats(self, dense: Row, text: str = SETS[0]) -> float:
        """Loss above the dense model's, in nats a token."""
        return math.log(self.perplexity[text] / dense.perplexity[text])


def reference(rows: Sequence[Row]) -> Row | None:
    """The row that others are a share of: the peer's SparseGPT, or the best of torch-pruning with our refit."""
    if rows[0].part == "channels":
        refitted = [row for row in rows if row.name.endswith("our refit")]
        return min(refitted, key=lambda row: row.perplexity[SETS[0]], default=None)
    theirs = [row for row in rows if (row.tool, row.name) == ("llm-compressor", "sparsegpt")]
    return min(theirs, key=lambda row: row.dtype != "float32", default=None)


def line(row: Row, dense: Row, against: Row | None) -> list[str]:
    share = "" if against is None else f"{row.nats(dense) / against.nats(dense):.2f}"
    figures = [f"{row.perplexity[name]:.2f}" for name in SETS]
    cost = [f"{row.seconds:.0f}", f"{row.cpu:.0f}", f"{max(row.above, 0) / MEBI:.0f}"]
    return [row.tool, row.method, *figures, f"{row.nats(dense):.3f}", share, *cost]


def tables(rows: Sequence[Row]) -> str:
    """A table for each part and number of sequences."""
    dense = next(row for row in rows if row.part == "dense")
    parts = []
    for part, title in PARTS.items():
        for samples in sorted({row.samples for row in rows if row.part == part}):
            own = [row for row in rows if (row.part, row.samples) == (part, samples)]
            bare = ["", "dense", *(f"{dense.perplexity[name]:.2f}" for name in SETS), *[""] * 5]
            lines = [HEAD, RULE, bare, *(line(row, dense, reference(own)) for row in own)]
            grid = "\n".join(f"| {' | '.join(words)} |" for words in lines)
            parts.append(f"**{title}, {samples} x 512 tokens of C4.** {circumstances(own)}\n\n{grid}")
    return "\n\n".join(parts)


def circumstances(rows: Sequence[Row]) -> str:
    threads = ", ".join(sorted({str(row.threads) for row in rows}))
    loads = [row.load for row in rows]
    return (
        f"{threads} threads, load average before {min(loads):.1f} to {max(loads):.1f}; of a run that follows another "
        f"at once, some 2 are that one's."
    )


def bench_table(folder: Path) -> str:
    """Decoding, prefill and memory of every form, from what `secateur bench` wrote of the model at 50 %."""
    lines = ["| form | decoding, tokens/s | beside dense, eager | range | first token of 512, s | weights, MB |"]
    lines.append("| --- | ---: | ---: | --- | ---: | ---: |")
    eager = json.loads((folder / "real-bench-eager.json").read_text())
    compiled = json.loads((folder / "real-bench-compiled.json").read_text())
    prefill = {form["name"]: form["rows"][1]["first_token_seconds"] for form in eager["forms"]}
    first = compiled["forms"][0]["rows"][0]["decode_tokens_per_s"]
    for form in compiled["forms"]:
        row, seconds = form["rows"][0], prefill.get(form["name"])
        spread = row.get("against_first_range")
        figures = [f"{row['decode_tokens_per_s']:.1f}", f"{row['decode_tokens_per_s'] / first:.2f}"]
        figures += ["" if spread is None else f"{spread[0]:.2f} to {spread[1]:.2f}"]
        figures += ["" if seconds is None else f"{seconds:.2f}", f"{form['resident_weight_bytes'] / 1e6:.0f}"]
        lines.append(f"| {' | '.join([form['name'], *figures])} |")
    machine = compiled["machine"]
    about = f"{machine['processor']}, {machine['threads']} threads, kernels: {machine['kernels'][0]}"
    return "\n".join([*lines, "", f"{about}; bf16, batch 1, context 32. Medians of three segments, in turns."])


def picture(rows: Sequence[Row], file: Path) -> None:
    """Loss above dense by text, weights at 50 %, with the sequences and the number format that most runs have."""
    dense = next(row for row in rows if row.part == "dense")
    own = [row for row in rows if row.part == "weights"]
    if not own:
        return
    kinds = [(row.samples, row.dtype) for row in own]
    samples, dtype = shown = max(set(kinds), key=lambda kind: (kinds.count(kind), kind))
    series = {
        f"{row.tool} {row.name}": [row.nats(dense, text) for text in SETS]
        for row in own
        if (row.samples, row.dtype) == shown
    }
    title = f"SmolLM2-135M, half of its weights zero, {samples} x 512 tokens of C4, {SHORT[dtype]}"
    bar_chart(file, title, SETS, series, "loss above dense, nats a token")
