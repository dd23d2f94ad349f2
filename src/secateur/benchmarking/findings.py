"""What the figures of a benchmark say, in sentences: what is faster, what isn't, and what can't be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.samples import NO_DIFFERENCE, Spread, differ, ratio
from secateur.report.schema.bench import BenchForm

FASTER, SLOWER = 1.03, 0.97  # between them, noise decides

Form = BenchForm


def decode_speeds(forms: Sequence[Form], batch: int, context: int) -> dict[str, float]:
    """Form name -> tokens a second of its decoding, of those that were measured."""
    return {name: found.median for name, found in _measured(forms, "decode_tokens_per_s", batch, context).items()}


_RANGES = {"decode_tokens_per_s": "decode_range", "first_token_seconds": "first_token_range"}


def _measured(forms: Sequence[Form], key: str, batch: int, context: int) -> dict[str, Spread]:
    """Form name -> a figure of its row with its range, of those that have it."""
    found = {}
    for form in forms:
        for row in form["rows"]:
            if (row["batch"], row["context"]) == (batch, context) and key in row:
                figures: Mapping[str, Any] = row
                low, high = figures.get(_RANGES[key]) or (figures[key], figures[key])
                found[form["name"]] = Spread(low, figures[key], high)
    return found


def verdict(own: Spread, other: Spread, more_is_faster: bool = True) -> str:
    """`faster`, `slower`, or that no difference was measured."""
    times = ratio(own, other).median if more_is_faster else ratio(other, own).median
    if SLOWER <= times <= FASTER or not differ(own, other):
        return NO_DIFFERENCE
    return "faster" if times > 1 else "slower"


def judge(forms: Sequence[Form]) -> None:
    """Adds to every row how its decoding compares with the first form's: `against_first`, `against_first_range` and
    `verdict`."""
    if not forms:
        return
    first = forms[0]["name"]
    for form in forms:
        for row in form["rows"]:
            speeds = _measured(forms, "decode_tokens_per_s", row["batch"], row["context"])
            if "skipped" in row or form["name"] == first or form["name"] not in speeds or first not in speeds:
                continue
            times = ratio(speeds[form["name"]], speeds[first])
            row["against_first"], row["against_first_range"] = times.median, [times.low, times.high]
            row["verdict"] = verdict(speeds[form["name"]], speeds[first])


def headline(forms: Sequence[Form]) -> str:
    """One sentence: how the fastest of the other forms compares with the first one, where the least is asked of them;
    empty where there's nothing to compare."""
    if not forms:
        return ""
    first = forms[0]
    for batch, context in sorted((row["batch"], row["context"]) for row in first["rows"] if "skipped" not in row):
        speeds = _measured(forms, "decode_tokens_per_s", batch, context)
        base = speeds.pop(first["name"], None)
        if base is not None and speeds:
            fastest = max(speeds, key=lambda name: speeds[name].median)
            text = _compared(f"{fastest} decodes", speeds[fastest], first["name"], base)
            return f"{text[0].upper()}{text[1:]} (batch {batch}, context {context})"
    return ""


def verdicts(forms: Sequence[Form]) -> list[str]:
    """One sentence for each form that isn't the baseline, by batch, at the shortest context that was measured."""
    said = [f"{form['name']} wasn't measured: {form['error']}" for form in forms if "error" in form]
    places = {(row["batch"], row["context"]) for form in forms for row in form["rows"] if "skipped" not in row}
    for batch in sorted({batch for batch, _ in places}):
        context = min(c for b, c in places if b == batch)
        speeds = _measured(forms, "decode_tokens_per_s", batch, context)
        first = forms[0]["side"]
        base = {
            form["name"]: speeds[form["name"]] for form in forms if form["side"] == first and form["name"] in speeds
        }
        if not base:
            continue
        waits = _measured(forms, "first_token_seconds", batch, context)
        for form in forms:
            name = form["name"]
            if form["side"] == first or name not in speeds:
                continue
            text = _sentence(name, speeds[name], base)
            said.append(f"batch {batch}, context {context}: {text}{_start(name, next(iter(base)), waits)}")
    return said


def _start(name: str, eager: str, waits: Mapping[str, Spread]) -> str:
    """How long the first token takes beside that of the baseline: prefill is eager in all forms."""
    if name not in waits or eager not in waits:
        return ""
    word = verdict(waits[name], waits[eager], more_is_faster=False)
    if word == NO_DIFFERENCE:
        return f"; its first token: {NO_DIFFERENCE}"
    times = ratio(waits[name], waits[eager]).median
    return f"; its first token takes {times:.2f} of the time" + ("" if word == "faster" else ", LONGER")


def _sentence(name: str, speed: Spread, base: Mapping[str, Spread]) -> str:
    eager, fastest = next(iter(base)), max(base, key=lambda one: base[one].median)
    text = _compared(f"{name} decodes", speed, eager, base[eager])
    if fastest != eager:
        text += _compared("; beside the fastest of them,", speed, fastest, base[fastest])
    return text


def _compared(what: str, speed: Spread, other: str, base: Spread) -> str:
    word = verdict(speed, base)
    if word == NO_DIFFERENCE:
        return f"{what} as fast as {other}: {NO_DIFFERENCE}"
    times = ratio(speed, base)
    word = "SLOWER" if word == "slower" else word
    span = f" ({times.low:.2f} to {times.high:.2f})" if times.low != times.high else ""
    return f"{what} {times.median:.2f} times{span} as fast as {other}: {word}"
