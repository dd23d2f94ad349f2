"""Prompts of the user's own: a text file with one a line, or rows whose field `prompt` may have several lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.data.rows import format_of, read_rows, utf8
from secateur.errors import InputError

MOST, MOST_BYTES = 50, 2**20  # each is continued by two models, and stands in the report


def check_prompts(spec: str) -> None:
    """Refuses a file of prompts that isn't there, before anything is read.

    Raises:
        InputError: in one line.
    """
    if not Path(spec).expanduser().is_file():
        raise InputError(
            f"--prompts {spec!r} is no file; give a .txt with one prompt a line, or .jsonl with 'prompt'"
        )


def read_prompts(spec: str) -> list[str]:
    """Reads the prompts of a file, at least one and at most `MOST`; empty lines are none.

    Args:
        spec: a .txt file, or one of rows (.jsonl, .json, .csv) with the field `prompt`.

    Raises:
        InputError: no such file, not UTF-8, larger than 1 MiB, a row without a prompt, or none or too many of them.
    """
    check_prompts(spec)
    path = Path(spec).expanduser()
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"--prompts {spec}: has more than {MOST_BYTES:,} bytes; give up to {MOST} prompts")
        rows = format_of(path) is not None
        found = _of_rows(spec, path) if rows else utf8(spec, path.read_bytes()).splitlines()
    except OSError as error:
        raise InputError(f"{spec} can't be read: {error.strerror or error}") from None
    prompts = [prompt for prompt in found if prompt.strip()]
    if not 1 <= len(prompts) <= MOST:
        raise InputError(f"--prompts {spec}: holds {len(prompts)} prompts; give 1 to {MOST}")
    return prompts


def _of_rows(spec: str, path: Path) -> list[str]:
    return [_prompt(f"--prompts {spec}: {where}", row.get("prompt")) for where, row in read_rows(spec, path).rows]


def _prompt(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} has no 'prompt' that is text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half a surrogate pair; it is not valid Unicode") from None
    return value
