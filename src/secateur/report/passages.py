"""Text of models as people read it: openings that begin where a sentence does, repetition cut and called so."""

from __future__ import annotations

import re

LONGEST, TIMES = 80, 4  # letters of what is repeated, and how often in a row until it's called repetition
_BEGINS = re.compile(r"(?<=[.!?])\s+(?=\S)|\n\s*(?=\S)")
_REPEATED = re.compile(rf"(.{{1,{LONGEST}}}?)\1{{{TIMES - 1},}}", re.DOTALL)
_CODE = re.compile(r"^(\s{2,}|\t)\S|[;{}]\s*$|^\s*(def|class|import|from|return|#include)\b", re.MULTILINE)


def opening(text: str, words: int) -> str:
    """A prompt from the middle of a text: from its first whole sentence or line on, so many words, as they stand.

    Where no sentence or line begins in the first half, it starts at the first whole word.
    """
    begin = _BEGINS.search(text)
    if begin is not None and begin.end() <= len(text) // 2:
        text = text[begin.end() :]
    else:
        text = text.partition(" ")[2] or text
    found = list(re.finditer(r"\S+", text))[:words]
    return text[: found[-1].end()] if found else ""


def without_repetition(text: str) -> tuple[str, bool]:
    """The text up to where it begins to say the same again and again, with that said twice; and whether it did."""
    found = next((m for m in _REPEATED.finditer(text) if m.group(1).strip() and len(m.group(0)) >= 12), None)
    if found is None:
        return text, False
    return text[: found.start()] + 2 * found.group(1), True


def is_code(text: str) -> bool:
    """Whether letters should stand under each other: indented lines, or words of a programming language."""
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and len(_CODE.findall(text)) >= 0.3 * len(lines)
