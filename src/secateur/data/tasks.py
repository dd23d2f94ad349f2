"""Tasks from a file: questions with their right answers, checked row by row. Nothing but the standard library.

A row is one of these, and all rows of a file are of one form:

    {"query": "...", "choices": ["...", ...], "gold": 0}               multiple choice; gold counts from 0
    {"context_options": ["...", ...], "continuation": "...", "gold": 0}  which context the continuation fits
    {"context": "...", "continuation": "..."}                          what comes next, word for word
    {"prompt": "...", "answer": "..."}                                 a generated answer; also "messages": [...] for
                                                                       a chat, a list of answers, "regex", "stop",
                                                                       "max_tokens"
    {"text": "...", "label": 0}                                        a class, for models that classify texts
    {"tokens": ["...", ...], "labels": [0, ...]}                       a class for each word; -100 = not asked for
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.data.conversations import Example
from secateur.data.items import Choice, Continuation, Item, Labelled, Question, Tagged, example_of
from secateur.data.rows import FORMATS, format_of, read_rows
from secateur.errors import InputError

MOST_CHOICES = 1000
LONGEST_PATTERN = 1000  # characters
MAX_TOKENS = 256  # of an answer, where a row doesn't say
NOT_ASKED = -100  # label of a word that doesn't count, as everywhere in torch


@dataclass(frozen=True)
class TaskFile:
    """The items of a file, all of one form.

    name  the file's, without folder and ending
    spec  as the user wrote it
    """

    name: str
    spec: str
    sha256: str
    form: str
    items: tuple[Item, ...]

    def first(self, limit: int | None) -> TaskFile:
        return self if limit is None else TaskFile(self.name, self.spec, self.sha256, self.form, self.items[:limit])


HALVES = {"@even": 0, "@odd": 1}  # ending of a name: every second item, from the first or the second on


def halved(spec: str) -> tuple[str, int | None]:
    """A file's name without `@even` or `@odd`, and the place of the first item that such a half has."""
    ending = next((end for end in HALVES if spec.endswith(end)), None)
    if ending is None or Path(spec).expanduser().is_file():
        return spec, None
    return spec.removesuffix(ending), HALVES[ending]


def is_file(spec: str) -> bool:
    """Whether a task's name means a file, rather than a task of the evaluation harness."""
    path = Path(halved(spec)[0]).expanduser()
    return format_of(path) is not None or path.is_file()


def check_tasks(specs: list[str]) -> None:
    """Refuses task files that aren't there; reads nothing."""
    for spec in specs:
        name = halved(spec)[0]
        if is_file(spec) and not Path(name).expanduser().is_file():
            raise InputError(f"task file {name!r} does not exist; give a {', '.join(FORMATS)} file")


def read_task(spec: str) -> TaskFile:
    """The items of a file; of `FILE@even` and `FILE@odd` every second one.

    Raises:
        InputError: no such file, no item in it, rows of several forms, or a row that is none; with where it stands.
    """
    check_tasks([spec])
    plain, half = halved(spec)
    path = Path(plain).expanduser()
    found = read_rows(plain, path)
    form, items = "", []
    for where, row in found.rows:
        own = next((name for name, keys in FORMS.items() if all(set(key) & set(row) for key in keys)), None)
        if own is None or (form and own != form):
            wanted = f"the other rows are of the form {_shown(form)}" if form else f"forms: {_every()}"
            raise InputError(f"{spec}: {where} is no such item; its fields: {', '.join(map(repr, row))}; {wanted}")
        form = own
        items.append(READERS[form](f"{spec}: {where}", row))
    if not items:
        raise InputError(f"{spec}: no item in it; forms: {_every()}")
    name = path.name[: -len(format_of(path) or "")]
    items = items if half is None else items[half::2]
    if not items:
        raise InputError(f"{spec}: a file of one item has no second half; give more items")
    return TaskFile(name, spec, found.sha256, form, tuple(items))


FORMS: dict[str, tuple[tuple[str, ...], ...]] = {  # form -> the fields it has, each by any of these names
    "choices": (("query",), ("choices",), ("gold",)),
    "contexts": (("context_options",), ("continuation",), ("gold",)),
    "continuation": (("context",), ("continuation",)),
    "answer": (("prompt", "messages"), ("answer", "regex")),
    "label": (("text",), ("label",)),
    "tags": (("tokens",), ("labels",)),
}


def _shown(form: str) -> str:
    return "{" + ", ".join("|".join(names) for names in FORMS[form]) + "}"


def _every() -> str:
    return ", ".join(_shown(form) for form in FORMS)


def _choices(where: str, row: Mapping[str, Any]) -> Choice:
    query, choices = _text(where, row, "query"), _texts(where, row, "choices", least=2)
    pairs = tuple((query, f"{_delimiter(where, row)}{choice}") for choice in choices)
    return Choice(pairs, _gold(where, row, len(choices)), tuple(map(len, choices)))


def _contexts(where: str, row: Mapping[str, Any]) -> Choice:
    contexts, end = _texts(where, row, "context_options", least=2), _text(where, row, "continuation", least=1)
    pairs = tuple((context, f"{_delimiter(where, row)}{end}") for context in contexts)
    return Choice(pairs, _gold(where, row, len(contexts)), None)


def _continuation(where: str, row: Mapping[str, Any]) -> Continuation:
    end = _text(where, row, "continuation", least=1)
    return Continuation(_text(where, row, "context"), f"{_delimiter(where, row)}{end}")


def _question(where: str, row: Mapping[str, Any]) -> Question:
    answers: tuple[str, ...] = ()
    if "answer" in row:
        many = isinstance(row["answer"], list)
        answers = _texts(where, row, "answer") if many else (_text(where, row, "answer", least=1),)
    pattern = _pattern(where, row) if row.get("regex") is not None else None
    most = row.get("max_tokens", MAX_TOKENS)
    if type(most) is not int or not 1 <= most <= 2**16:
        raise InputError(f"{where}: 'max_tokens' is {most!r}; give a whole number from 1 to {2**16}")
    stop: tuple[str, ...] = ()
    if row.get("stop") is not None:
        stop = _texts(where, row, "stop") if isinstance(row["stop"], list) else (_text(where, row, "stop", 1),)
    prompt = check_messages(where, row["messages"]) if "messages" in row else _text(where, row, "prompt", least=1)
    return Question(prompt, answers, pattern, stop, most)


def _labelled(where: str, row: Mapping[str, Any]) -> Labelled:
    label = row["label"]
    if type(label) not in (int, str):
        raise InputError(f"{where}: 'label' must be a whole number or the name of a class, not {label!r}")
    return Labelled(_text(where, row, "text"), label)


def _tagged(where: str, row: Mapping[str, Any]) -> Tagged:
    words, labels = _texts(where, row, "tokens", least=1), row["labels"]
    if not isinstance(labels, list) or any(type(label) not in (int, str) for label in labels):
        raise InputError(f"{where}: 'labels' must be a list of whole numbers or names of classes")
    if len(labels) != len(words):
        raise InputError(f"{where}: {len(words)} tokens have {len(labels)} labels; give one for each")
    return Tagged(words, tuple(None if label == NOT_ASKED else label for label in labels))


READERS: dict[str, Callable[[str, Mapping[str, Any]], Item]] = {
    "choices": _choices,
    "contexts": _contexts,
    "continuation": _continuation,
    "answer": _question,
    "label": _labelled,
    "tags": _tagged,
}


def check_messages(where: str, messages: Any) -> tuple[Mapping[str, str], ...]:
    """The messages of a chat as `{"role": ..., "content": ...}` with strings in both.

    Raises:
        InputError: in one line.
    """
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")
        _valid(where, "content", message.get("content"), 0)
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _text(where: str, row: Mapping[str, Any], key: str, least: int = 0) -> str:
    return _valid(where, key, row[key], least)


def _valid(where: str, key: str, value: Any, least: int) -> str:
    if not isinstance(value, str) or len(value) < least:
        raise InputError(f"{where}: '{key}' must be a {'non-empty ' if least else ''}string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: '{key}' holds half a surrogate pair; it is not valid Unicode") from None
    return value


def _texts(where: str, row: Mapping[str, Any], key: str, least: int = 1) -> tuple[str, ...]:
    values = row[key]
    if not isinstance(values, list) or not least <= len(values) <= MOST_CHOICES:
        raise InputError(f"{where}: '{key}' must be a list of {least} to {MOST_CHOICES} strings")
    return tuple(_valid(where, key, value, 1) for value in values)


def _gold(where: str, row: Mapping[str, Any], count: int) -> int:
    gold = row["gold"]
    if type(gold) is not int or not 0 <= gold < count:
        raise InputError(f"{where}: 'gold' is {gold!r}; give the number of the right one, 0 to {count - 1}")
    return gold


def _delimiter(where: str, row: Mapping[str, Any]) -> str:
    """Between a context and what follows it."""
    return _text(where, row, "delimiter") if "delimiter" in row else " "


def _pattern(where: str, row: Mapping[str, Any]) -> str:
    pattern = _text(where, row, "regex", least=1)
    try:
        if len(pattern) > LONGEST_PATTERN:
            raise re.error(f"longer than {LONGEST_PATTERN} characters")
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{where}: 'regex' is no regular expression that can be used ({error})") from None
    return pattern


def examples_of(task: TaskFile) -> list[Example]:
    """The questions of a task with their right answers, as text to calibrate on.

    Raises:
        InputError: an item that has no answer as text, only a pattern.
    """
    return [example_of(f"{task.spec}: item {number}", item) for number, item in enumerate(task.items, 1)]
