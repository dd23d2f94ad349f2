"""Task data: conversations, or prompts with their completions, as token ids of which only the answers are learned.

The forms of a row are those of `data.conversations`, the formats of a file those of `data.rows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.data.conversations import encode_example, is_example, talk_of
from secateur.data.rows import format_of, read_rows
from secateur.errors import InputError
from secateur.recovery.losses import IGNORED


@dataclass(frozen=True)
class Example:
    """Token ids, and for each the id itself where it is learned, else `IGNORED`."""

    ids: list[int]
    labels: list[int]


def first_row(spec: str) -> Mapping[str, Any]:
    """The first row of a file of rows; an empty one where `spec` is something else, or can't be read."""
    path = Path(spec)
    if format_of(path) is None or not path.is_file():
        return {}
    try:
        return next((row for _, row in read_rows(spec, path).rows), {})
    except InputError:
        return {}


def is_task_data(spec: str) -> bool:
    """Whether `spec` is a file of rows of which the first is a conversation, or a prompt with its completion."""
    return is_example(first_row(spec))


def read_examples(spec: str, tokenizer: Any | None) -> tuple[list[Example], str]:
    """The examples of a file, in order, and its SHA-256.

    Raises:
        InputError: a row that is no example, no tokenizer, conversations without a chat template.
    """
    if tokenizer is None:
        raise InputError(f"{spec} holds text and the model has no tokenizer; give data with 'input_ids'")
    read = read_rows(spec, Path(spec))
    found = []
    for where, row in read.rows:
        ids, counts = encode_example(talk_of(f"{spec}: {where}", row), tokenizer)
        found.append(Example(ids, [token if own else IGNORED for token, own in zip(ids, counts, strict=True)]))
    learned = [example for example in found if any(label != IGNORED for label in example.labels)]
    if not learned:
        raise InputError(f"{spec}: no answer in it that could be learned; assistant messages or completions are")
    return learned, read.sha256
