"""How sources of text are named: several with commas, each with its share. Nothing is read, torch not needed."""

from __future__ import annotations

import math
from pathlib import Path

from secateur.errors import InputError


def split_specs(data: str, flag: str = "--data") -> list[str]:
    """Splits a comma-separated list of sources, each once. An existing path with a comma in it is one source.

    Raises:
        InputError: nothing is in it.
    """
    specs = [data] if _exists(data) else [part.strip() for part in data.split(",") if part.strip()]
    if not specs and flag != "--data":
        raise InputError(f"{flag} is empty; give a .jsonl file")
    if not specs:
        raise InputError("--data is empty; give a .jsonl, .txt or .parquet file, or 'stdlib'")
    return list(dict.fromkeys(specs))


def shares_of(spec: str, flag: str = "--calibrate") -> list[tuple[str, float]]:
    """(source, share) of each source of a specification; shares add up to 1.

    >>> shares_of("a.jsonl:3,b.jsonl:1")
    [('a.jsonl', 0.75), ('b.jsonl', 0.25)]

    Raises:
        InputError: a share that isn't a positive number, shares for some sources only, or a source named twice.
    """
    if _exists(spec):
        return [(spec, 1.0)]
    parts = [part.strip() for part in spec.split(",") if part.strip()]
    split = [_share(part, flag) for part in parts] or [(spec, None)]
    given = [share for _, share in split if share is not None]
    if given and len(given) < len(split):
        raise InputError(f"{flag} {spec} gives a share to some sources only; give one to each, or to none")
    names = [name for name, _ in split]
    if len(set(names)) < len(names):
        raise InputError(f"{flag} {spec} names a source twice; give it one share")
    total = sum(given) or float(len(split))
    return [(name, (1.0 if share is None else share) / total) for name, share in split]


def _share(part: str, flag: str) -> tuple[str, float | None]:
    """A source, and the number behind its last colon if that is one: `stdlib:code` and hub ids have others."""
    name, colon, end = part.rpartition(":")
    if not colon or _exists(part):
        return part, None
    try:
        share = float(end)
    except ValueError:
        return part, None
    if not (share > 0 and math.isfinite(share)):
        raise InputError(f"{flag}: the share of {name} is {end}; give a number above 0")
    return name, share


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError):
        return False
