"""What `secateur search` is asked for: `params=0.75x`, `size=100MB`, `perplexity<=1.1x`, `task:FILE>=0.98x`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from secateur.config.quantities import parse_amount, parse_bytes
from secateur.config.suggestions import nearest
from secateur.errors import InputError

COSTS = ("params", "size", "memory", "flops", "latency", "prefill")
SECONDS = ("latency", "prefill")
PERPLEXITY, TASK = "perplexity", "task"
ABOUT = (*COSTS, PERPLEXITY, f"{TASK}:FILE")
_WISH = re.compile(r"\s*(?P<about>task:.+?|[A-Za-z_]+)\s*(?P<sign><=|>=|=)\s*(?P<amount>[^<>=]+?)\s*")
_SPELLED = {"params": "params", "size": "size", "memory": "size", "flops": "params"}
_SPELLED |= {"latency": "latency", "prefill": "latency"}


class Wish(NamedTuple):
    """One limit.

    Args:
        text: as it was given.
        about: one of `COSTS`, `perplexity` or `task`.
        amount: a share of the untouched model's where `relative`; else a count, bytes, seconds, a perplexity, or a
            share of right answers.
        file: of the task.
    """

    text: str
    about: str
    amount: float
    relative: bool
    file: str = ""

    @property
    def of_cost(self) -> bool:
        """Whether it bounds what the model takes; otherwise how good it is."""
        return self.about in COSTS

    def limit(self, whole: float) -> float:
        """The bound itself, where the untouched model has `whole`."""
        return self.amount * whole if self.relative else self.amount

    def held(self, value: float, whole: float) -> bool:
        """Whether a value keeps it."""
        bound = self.limit(whole)
        return value >= bound if self.about == TASK else value <= bound


def parse_wish(text: str) -> Wish:
    """Reads one wish.

    >>> parse_wish("size=100MB").amount, parse_wish("latency=70%").amount, parse_wish("perplexity<=1.1x").relative
    (100000000.0, 0.7, True)

    Raises:
        InputError: what isn't understood, and how it is written.
    """
    found = _WISH.fullmatch(text)
    if found is None:
        raise InputError(f"wish '{text[:60]}' isn't understood; write it like params=0.75x or perplexity<=1.1x")
    about, sign, amount = found["about"], found["sign"], found["amount"]
    about, _, file = about.partition(":")
    if about not in (*COSTS, PERPLEXITY, TASK) or (about == TASK and not file):
        raise InputError(f"wish '{text[:60]}': '{about}' is unknown{nearest(about, ABOUT)}")
    if sign == (">=" if about != TASK else "<="):
        other = "<=" if about != TASK else ">="
        raise InputError(f"wish '{text[:60]}': {about} has a bound on the other side; write {about}{other}{amount}")
    value, relative = _amount(text, about, amount)
    if value <= 0 or (relative and about in COSTS and value >= 1):
        raise InputError(f"wish '{text[:60]}' asks for nothing to be cut; give less than 1x and more than 0")
    if about == TASK and (value > 1 and not relative):
        raise InputError(f"wish '{text[:60]}': a share of right answers is at most 1")
    return Wish(text.strip(), about, value, relative, file)


def parse_wishes(texts: Iterable[str]) -> tuple[Wish, ...]:
    """Reads wishes, several of them in one text with commas between.

    Raises:
        InputError: one that isn't understood, or two about the same thing.
    """
    wishes = tuple(parse_wish(part) for text in texts for part in text.split(",") if part.strip())
    seen: dict[tuple[str, str], Wish] = {}
    for wish in wishes:
        other = seen.setdefault((wish.about, wish.file), wish)
        if other is not wish:
            raise InputError(f"wishes '{other.text}' and '{wish.text}' are about the same thing; give one")
    return wishes


def _amount(text: str, about: str, amount: str) -> tuple[float, bool]:
    share = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(x|%)", amount)
    if share is not None:
        return float(share[1]) / (100 if share[2] == "%" else 1), True
    if about in (PERPLEXITY, TASK):
        if re.fullmatch(r"\d+(?:\.\d+)?", amount) is None:
            raise InputError(f"wish '{text[:60]}': write {about} like 1.1x or {'0.6' if about == TASK else '12.5'}")
        return float(amount), False
    kind = _SPELLED[about]
    try:
        return float(parse_bytes(amount)) if kind == "size" else parse_amount(amount, kind), False
    except InputError:
        example = {"size": "100MB", "latency": "12ms"}.get(kind, "1.5B")
        raise InputError(
            f"wish '{text[:60]}' isn't understood; write it like {about}=0.7x or {about}={example}"
        ) from None
