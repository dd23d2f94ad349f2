"""Sizes as people write them."""

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
