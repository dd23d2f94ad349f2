"""What a data source gives: documents as text, documents that are token ids already, or examples with answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.data.conversations import Example, is_example, talk_of
from secateur.errors import InputError

EXAMPLE = "example"


@dataclass(frozen=True)
class Corpus:
    """Documents of one source. Exactly one of `documents`, `ids` and `examples` is set.

    name       the source as the user wrote it
    sha256     of what was read: the bytes of a file, else the documents, each after its length
    documents  texts, none of them blank
    ids        token ids of documents that came tokenised, none of them empty
    examples   conversations, or questions with their answers; only the answers count where a loss is taken
    stream     True when the source is one running text, without borders between documents
    notes      what a report should say about the reading, for example that only the first part was read
    shipped    True for text that comes with Python: its tokens may be kept in the user's cache
    """

    name: str
    sha256: str
    documents: tuple[str, ...] | None = None
    ids: tuple[tuple[int, ...], ...] | None = None
    examples: tuple[Example, ...] | None = None
    stream: bool = False
    notes: tuple[str, ...] = ()
    shipped: bool = False


def from_rows(
    name: str,
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    sha256: str | None = None,
    notes: tuple[str, ...] = (),
) -> Corpus:
    """Corpus of rows that hold `text` (a string), `input_ids` (a list of integers) or a conversation, one document
    a row.

    The first row says which of them; `text` wins where a row has several. Blank documents are left out.
    `rows` yields (where, row); `where` names the row in an error, for example "line 3".

    Raises:
        InputError: a row without the field, with a value of another type, or no document at all.
    """
    field, texts, ids, examples = "", [], [], []
    for where, row in rows:
        field = field or next((key for key in ("text", "input_ids") if key in row), "") or _example_field(row)
        if field == EXAMPLE:
            examples.append(talk_of(f"{name}: {where}", row))
            continue
        if not field or field not in row:
            wanted = f"{field!r}" if field else "'text' (or 'input_ids')"
            have = ", ".join(repr(key) for key in row) or "none"
            raise InputError(f"{name}: {where} has no {wanted} field; its fields: {have}")
        value = row[field]
        if field == "text":
            if _text(name, where, value).strip():
                texts.append(value)
        elif _ids(name, where, value):
            ids.append(tuple(value))
    if examples:
        return of_examples(name, examples, sha256, notes)
    if not texts and not ids:
        raise InputError(f"{name}: no document with any text in it; one non-empty document is the least")
    documents = tuple(texts) if texts else None
    tokens = tuple(ids) if ids else None
    return Corpus(name, sha256 or _digest(documents, tokens), documents, tokens, notes=notes)


def _example_field(row: Mapping[str, Any]) -> str:
    return EXAMPLE if is_example(row) else ""


def of_examples(
    name: str, examples: Sequence[Example], sha256: str | None = None, notes: tuple[str, ...] = ()
) -> Corpus:
    """Corpus of conversations, or of questions with their answers."""
    found = tuple(examples)
    digest = sha256 or hashlib.sha256(repr(found).encode()).hexdigest()
    return Corpus(name, digest, examples=found, notes=notes)


def from_texts(name: str, texts: Iterable[str]) -> Corpus:
    """Corpus of documents that are in memory already."""
    return from_rows(name, ((f"document {n}", {"text": text}) for n, text in enumerate(texts, 1)))


def _text(name: str, where: str, value: Any) -> str:
    if value is None:  # how parquet says "missing"
        return ""
    if not isinstance(value, str):
        raise InputError(f"{name}: 'text' of {where} is {_kind(value)}; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name}: 'text' of {where} holds half a surrogate pair; it is not valid Unicode") from None
    return value


def _ids(name: str, where: str, value: Any) -> bool:
    if value is None:
        return False
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise InputError(f"{name}: 'input_ids' of {where} is {_kind(value)}; it must be a flat list of integers")
    return bool(value)


def _kind(value: Any) -> str:
    if isinstance(value, list):
        odd = next((item for item in value if type(item) is not int), None)
        return f"a list that holds {_kind(odd)}"
    names = {str: "a string", int: "a number", float: "a number", bool: "true or false", dict: "an object"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _digest(documents: tuple[str, ...] | None, ids: tuple[tuple[int, ...], ...] | None) -> str:
    digest = hashlib.sha256()
    for document in documents or ids or ():
        data = document.encode() if isinstance(document, str) else ",".join(map(str, document)).encode()
        digest.update(f"{len(data)}:".encode())  # so that ["ab"] and ["a", "b"] differ
        digest.update(data)
    return digest.hexdigest()
