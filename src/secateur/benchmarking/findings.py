"""What the figures of a benchmark say, in sentences: what is faster, what isn't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FASTER, SLOWER = 1.03, 0.97  # between them, noise decides

Form = Mapping[str, Any]


def decode_speeds(forms: Sequence[Form], batch: int, context: int) -> dict[str, float]:
    """Form name -> tokens a second of its decoding, of those that were measured."""
    return _measured(forms, "decode_tokens_per_s", batch, context)


def _measured(forms: Sequence[Form], key: str, batch: int, context: int) -> dict[str, float]:
    """Form name -> a figure of its row, of those that have it."""
    return {
        form["name"]: row[key]
        for form in forms
        for row in form["rows"]
        if (row["batch"], row["context"]) == (batch, context) and key in row
    }


def verdicts(forms: Sequence[Form]) -> list[str]:
    """One sentence for each form that isn't the baseline, by batch, at the shortest context that was measured."""
    said = [f"{form['name']} wasn't measured: {form['error']}" for form in forms if "error" in form]
    places = {(row["batch"], row["context"]) for form in forms for row in form["rows"] if "skipped" not in row}
    for batch in sorted({batch for batch, _ in places}):
        context = min(c for b, c in places if b == batch)
        speeds = decode_speeds(forms, batch, context)
        first = forms[0]["side"]
        base = {
            form["name"]: speeds[form["name"]] for form in forms if form["side"] == first and form["name"] in speeds
        }
        if not base:
            continue
        waits = _measured(forms, "first_token_seconds", batch, context)
        eager, fastest = next(iter(base)), max(base, key=lambda name: base[name])
        for form in forms:
            name = form["name"]
            if form["side"] == first or name not in speeds:
                continue
            text = _sentence(name, speeds[name], base, eager, fastest)
            said.append(f"batch {batch}, context {context}: {text}{_start(name, eager, waits)}")
    return said


def _start(name: str, eager: str, waits: Mapping[str, float]) -> str:
    """How long the first token takes beside that of the baseline: prefill is eager in all forms."""
    if name not in waits or eager not in waits:
        return ""
    ratio = waits[eager] / waits[name]
    if SLOWER <= ratio <= FASTER:
        return "; its first token takes as long"
    return f"; its first token takes {waits[name] / waits[eager]:.2f} of the time" + ("" if ratio > 1 else ", LONGER")


def _sentence(name: str, speed: float, base: Mapping[str, float], eager: str, fastest: str) -> str:
    ratio = speed / base[eager]
    word = "faster than" if ratio >= FASTER else "NOT faster than" if ratio >= SLOWER else "SLOWER than"
    text = f"{name} decodes {ratio:.2f} times as fast as {eager}, {word} it"
    if fastest != eager:
        best = speed / base[fastest]
        verb = "faster" if best >= FASTER else "not faster" if best >= SLOWER else "slower"
        text += f"; {best:.2f} times the fastest of them ({fastest}): {verb}"
    return text
