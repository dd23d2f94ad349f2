"""Two evaluations side by side: every figure, the ratio of the two, and whether it is better, worse or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from secateur.report import numbers as fmt
from secateur.report.samples import NO_DIFFERENCE, Spread, busy, differ
from secateur.report.samples import ratio as ratio_of


@dataclass(frozen=True)
class Metric:
    """One line of the before/after table. `better` is -1 where lower is better, +1 where higher is."""

    key: str
    label: str
    show: Callable[[Any], str]
    better: int
    noise: float = 0.005  # relative change below which the two count as the same


METRICS = (
    Metric("perplexity", "Perplexity", fmt.number, -1),
    Metric("bits_per_byte", "Bits per byte", fmt.number, -1),
    Metric("parameters", "Parameters", fmt.count, -1),
    Metric("nonzero_parameters", "Non-zero parameters", fmt.count, -1),
    Metric("bytes_on_disk", "Size on disk", fmt.size, -1),
    # Timings of short runs wander by a few per cent, so a small gain is not called one.
    Metric("prefill_tokens_per_s", "Prefill, tokens/s", fmt.number, +1, 0.05),
    Metric("decode_tokens_per_s", "Decode, tokens/s", fmt.number, +1, 0.05),
    Metric("peak_memory_bytes", "Peak memory", fmt.size, -1, 0.05),
)


@dataclass(frozen=True)
class Row:
    """A metric before and after.

    Args:
        verdict: better, worse, same or unknown.
        note: what goes with the ratio.
        effect: of a difference: slight below 5 %, large at a factor of two, else nothing.
    """

    key: str
    label: str
    before: str
    after: str
    ratio: str
    change: str
    verdict: str
    note: str = ""
    effect: str = ""


SLIGHT, LARGE = 1.05, 2.0


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Row]:
    """One row per metric that at least one of two evaluations has."""
    rows = []
    for metric in METRICS:
        values = [side.get(metric.key) for side in (before, after)]
        if values != [None, None]:
            ranges = [measured_range(side, metric.key) for side in (before, after)]
            rows.append(judged(metric, *values, *ranges))
    return _with_zeros(rows)


def measured_range(figures: Mapping[str, Any], key: str) -> Spread | None:
    """The interval of a timing; None for what isn't one, or where it isn't known."""
    found = figures.get(key.removesuffix("_tokens_per_s") + "_range") if key.endswith("_tokens_per_s") else None
    if not isinstance(found, list | tuple) or len(found) != 2 or not all(fmt.is_number(end) for end in found):
        return None
    middle: Any = figures.get(key)
    return Spread(found[0], middle, found[1]) if fmt.is_number(middle) and found[0] > 0 else None


def judged(metric: Metric, before: Any, after: Any, was: Spread | None = None, now: Spread | None = None) -> Row:
    """One row: both figures, their ratio, and whether that is better. A ratio of timings has its spread beside it,
    and where their intervals overlap it is no difference."""
    both = fmt.is_number(before) and fmt.is_number(after) and before > 0
    times = after / before if both else None
    sides = (before, after)
    was_shown, shown = fmt.numbers(sides) if metric.show is fmt.number else map(metric.show, sides)
    verdict, note = _verdict(times, metric), ""
    if was is not None and now is not None:
        span = ratio_of(now, was)
        note = f"{fmt.ratio(span.low)} to {fmt.ratio(span.high)}"
        if not differ(now, was):
            verdict, note = "same", NO_DIFFERENCE
    return Row(
        metric.key, metric.label, was_shown, shown, fmt.ratio(times), fmt.change(times), verdict, note, _effect(times)
    )


def _effect(times: float | None) -> str:
    if times is None:
        return ""
    factor = max(times, 1 / times) if times > 0 else LARGE
    return "slight" if factor < SLIGHT else "large" if factor >= LARGE else ""


def _with_zeros(rows: list[Row]) -> list[Row]:
    """Beside parameters that are as many as before: how many of them still aren't zero."""
    found = {row.key: row for row in rows}
    zeros = found.get("nonzero_parameters")
    if zeros is None or zeros.verdict == "same" or found.get("parameters", zeros).verdict != "same":
        return rows
    note = f"{zeros.ratio} non-zero"
    return [replace(row, note=note) if row.key == "parameters" else row for row in rows]


def load_warning(figures: Mapping[str, Any]) -> str | None:
    """What goes on top of timings of a busy machine."""
    return busy(figures.get("load_before"), figures.get("cores"))


def _verdict(times: float | None, metric: Metric) -> str:
    if times is None:
        return "unknown"
    if abs(times - 1) < metric.noise:
        return "same"
    return "better" if (times > 1) == (metric.better > 0) else "worse"
