"""Sizes, counts and times as people write them."""

from __future__ import annotations

import re

from secateur.errors import InputError

_FACTOR = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `2GB`, `512MiB` or `1.5G`.

    >>> parse_bytes("1.5GB")
    1500000000

    Raises:
        InputError: not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text, flags=re.IGNORECASE)
    if match is None:
        raise InputError(f"'{text}' is not a size; write it like 2GB or 512MiB")
    return int(float(match[1]) * _FACTOR[(match[2] or "").upper()])


_COUNT = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def parse_amount(text: str, kind: str, whole: float = 1.0) -> float:
    """A target: a percentage of `whole`, or for `size` bytes, for `latency` seconds, else a count.

    >>> parse_amount("75%", "params", 200)
    150.0
    >>> parse_amount("1.5B", "params"), parse_amount("12ms", "latency")
    (1500000000.0, 0.012)

    Raises:
        InputError: none of these.
    """
    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if share is not None:
        return whole * float(share[1]) / 100
    if kind == "size":
        return float(parse_bytes(text))
    pattern = r"(m?s)" if kind == "latency" else r"([KMBGT]?)"
    match = re.fullmatch(rf"\s*(\d+(?:\.\d+)?)\s*{pattern}\s*", text, flags=re.IGNORECASE)
    if match is None:
        example = "12ms" if kind == "latency" else "1.5B"
        raise InputError(f"{kind} '{text}' isn't understood; write it like 75% or {example}")
    factor = {"MS": 1e-3, "S": 1.0}[match[2].upper()] if kind == "latency" else _COUNT[match[2].upper()]
    return float(match[1]) * factor


MOST_SEARCH = 10**7


def parse_search(text: str) -> tuple[int | None, float | None]:
    """How long a search goes on: (times that something is weighed, None) or (None, seconds).

    >>> parse_search("100"), parse_search("1.5h")
    ((100, None), (None, 5400.0))

    Raises:
        InputError: neither a number nor a time, or nothing.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h)?\s*", text)
    if match is None or float(match[1]) <= 0 or (match[2] is None and "." in match[1]):
        raise InputError(f"search '{text}' isn't understood; write it like 100, 30s, 10min or 2h")
    amount = float(match[1]) * {"s": 1, "min": 60, "h": 3600}.get(match[2], 1)
    if amount > MOST_SEARCH:
        raise InputError(f"search '{text[:40]}' is too much; at most {MOST_SEARCH} times or seconds")
    return (int(match[1]), None) if match[2] is None else (None, amount)
