"""What the comparison measured, and the page that shows it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PEER, OURS = "llm-compressor", "secateur"
MEBI = 2**20

HEAD = ("model", "method", "target", "tool", "pruning, s", "whole process, s", "peak, MiB", "above, MiB", "ppl")

NOTES = """\
How to read it: medians over the runs, in brackets the fastest and the slowest. In the lines of ratios, above 1
means that Secateur is faster, smaller or better.

- *target*: a sparsity (fraction removed), or N:M (N zeros in each group of M inputs).
- *pruning*: from the model in memory to the pruned model in memory, calibration included; loading, saving and
  evaluation excluded. *Whole process*: from start to exit, with imports, loading and saving.
- *peak*: the largest resident set of the process. *Above*: the peak while pruning, less the peak before it, when
  libraries, model and tokens were loaded.
- Both tools read the same file of calibration tokens: 128 sequences as long as the context (at most 512), from
  TinyStories, each story with its BOS, joined, cut, permuted with seed 0.
- The peer works and saves in fp32. Its batch size is 1, its default.
- Perplexity is computed by the benchmark itself, not by either tool: each evaluation story alone with BOS, cut at
  the context, fp32, exp(total negative log-likelihood / predicted tokens).
- Sparsity is over the Linear weights of the decoder, without embeddings and head.
- Magnitude is left out: the peer's one-shot entry point accepts its magnitude modifier but changes no weight.
"""


@dataclass(frozen=True)
class Record:
    """One run of one tool: seconds, bytes, and what the judge found in the saved checkpoint."""

    tool: str
    model: str
    method: str
    target: str
    prune_seconds: float
    process_seconds: float
    cpu_seconds: float
    peak_bytes: int
    above_bytes: int
    perplexity: float
    sparsity: float
    pattern_held: float | None
    load_before: float

    @property
    def case(self) -> tuple[str, str, str]:
        return self.model, self.method, self.target

    @property
    def figures(self) -> tuple[float, ...]:
        """The columns that the table shows."""
        memory = self.peak_bytes / MEBI, self.above_bytes / MEBI
        return self.prune_seconds, self.process_seconds, *memory, self.perplexity

    def __str__(self) -> str:
        seconds, whole, peak, above, perplexity = self.figures
        return (
            f"{self.tool:<15}{' '.join(self.case)}: pruning {seconds:.2f} s of {whole:.1f},"
            f" cpu {self.cpu_seconds:.1f} s, peak {peak:.0f} MiB, above {above:.0f},"
            f" perplexity {perplexity:.3f}, sparsity {self.sparsity:.4f}"
            + (f", pattern held {self.pattern_held:.4f}" if self.pattern_held is not None else "")
            + f" (load before {self.load_before:.1f})"
        )


def table(records: Sequence[Record]) -> str:
    """Markdown: for each case a row per tool, and the ratios peer / ours."""
    rows = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for case in dict.fromkeys(record.case for record in records):
        medians: list[list[float]] = []
        for tool in (PEER, OURS):
            runs = [record for record in records if record.case == case and record.tool == tool]
            if runs:
                medians.append([statistics.median(column) for column in zip(*(r.figures for r in runs), strict=True)])
                rows.append(_row(case, tool, medians[-1], [run.prune_seconds for run in runs]))
        if len(medians) == 2:
            ratios = [f"{peer / ours:.2f}" if ours > 0 else "-" for peer, ours in zip(*medians, strict=True)]
            rows.append(f"| | | | *{PEER} / {OURS}* | " + " | ".join(ratios) + " |")
    return "\n".join(rows)


def _row(case: tuple[str, ...], tool: str, medians: list[float], spread: list[float]) -> str:
    seconds, whole, peak, above, perplexity = medians
    cells = [f"{seconds:.2f} ({min(spread):.2f} to {max(spread):.2f})", f"{whole:.1f}", f"{peak:.0f}"]
    return "| " + " | ".join([*case, tool, *cells, f"{above:.0f}", f"{perplexity:.3f}"]) + " |"


def page(records: Sequence[Record], measured_on: dict[str, Any]) -> str:
    """The whole markdown page."""
    loads = [record.load_before for record in records]
    versions = [
        f"- {tool}: " + ", ".join(f"{name} {number}" for name, number in measured_on["versions"][tool].items())
        for tool in (PEER, OURS)
    ]
    return "\n".join(
        [
            "# Secateur beside llm-compressor",
            "",
            "Made by `python benchmarks/peers.py`; all single runs are in `peers.json`.",
            "",
            table(records),
            "",
            NOTES,
            "Measured on:",
            "",
            f"- {measured_on['cpu']}, {measured_on['cores']} cores, {measured_on['memory_bytes'] / 2**30:.0f} GiB,"
            f" {measured_on['system']}; {measured_on['threads']} threads; {measured_on['runs']} runs of each tool,"
            " their order alternating",
            f"- load average before the runs: median {statistics.median(loads):.1f}, highest {max(loads):.1f}"
            " (the run before still counts in it)",
            *versions,
            "",
        ]
    )
