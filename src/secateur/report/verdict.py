"""Whether a cut was worth it, in words: what it gave, what it cost, and what to do about that."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.report import numbers as fmt
from secateur.report.compared import Row
from secateur.report.facts import Report, comparison, items, measured, section

# By how much perplexity rose: below each, what that is called. 5 % is a twentieth of a nat, hardly seen in text; at
# 20 % small models visibly write worse; at twice the original's they stop making sense.
NOTHING, SMALL, CLEAR, LARGE = 1.005, 1.05, 1.2, 2.0


@dataclass(frozen=True)
class Verdict:
    """`word`: better, worse, or same where it is neither; `judgement` in two words or three; `why` in a sentence."""

    word: str
    judgement: str
    why: str


def verdict(report: Report) -> Verdict | None:
    """What a run's figures come to; None where perplexity wasn't measured on both sides."""
    before, after = (measured(report, side, "perplexity") for side in ("before", "after"))
    if not (fmt.is_number(before) and fmt.is_number(after) and before > 0):
        return None
    rise, gained = after / before, gains(comparison(report))
    word, judgement, advice = _judged(rise, bool(gained), _zeros(report), bool(section(report, "recovery")))
    gave = _listed(gained) if gained else "Nothing is smaller or faster"
    was, now = fmt.numbers((before, after))
    cost = f"perplexity went from {was} to {now} ({fmt.change(rise)}), {_called(rise)}"
    return Verdict(word, judgement, f"{gave}; {cost}.{f' {advice}' if advice else ''}")


def gains(rows: list[Row]) -> list[str]:
    """What became smaller or faster, in a few words each: timings only where a difference was measured."""
    found = {row.key: row for row in rows if row.verdict == "better"}
    said = []
    if "parameters" in found:
        said.append(f"{found['parameters'].change.lstrip('−')} fewer parameters")
    if "bytes_on_disk" in found:
        said.append(f"{found['bytes_on_disk'].change.lstrip('−')} less on disk")
    if "decode_tokens_per_s" in found:
        said.append(f"decoding {found['decode_tokens_per_s'].ratio} as fast")
    if not said and "peak_memory_bytes" in found:
        said.append(f"{found['peak_memory_bytes'].change.lstrip('−')} less memory")
    return said


def _judged(rise: float, gained: bool, zeros: bool, trained: bool) -> tuple[str, str, str]:
    """Word, judgement and advice."""
    train = "Prune less." if trained else "Prune less, or train it: secateur recover."
    if rise > LARGE:
        return "worse", "Not worth it", train
    if not gained:
        pays = "The zeros pay after secateur compress." if zeros else ""
        return ("same", "Not yet worth it", pays) if zeros else ("worse", "Not worth it", "")
    if rise > CLEAR:
        return "worse", "Not yet worth it", train
    if rise > SMALL:
        return "same", "A fair trade", "" if trained else "Training makes up for some of it: secateur recover."
    return "better", "Worth it", ""


def _called(rise: float) -> str:
    """What a rise of perplexity is called."""
    if rise < 1 / NOTHING:
        return "which is better than before"
    names = (
        (NOTHING, "no loss that shows"),
        (SMALL, "a small loss"),
        (CLEAR, "a clear loss"),
        (LARGE, "a large loss"),
    )
    return next((name for end, name in names if rise <= end), "a ruinous loss")


def _zeros(report: Report) -> bool:
    return any(site.get("kind") == "weight" for site in items(report, "sites"))


def _listed(parts: list[str]) -> str:
    whole = ", ".join(parts)
    return whole[:1].upper() + whole[1:]
