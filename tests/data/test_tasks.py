"""Rows of task files are hostile until checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secateur.data.items import Choice, Question, Tagged
from secateur.data.tasks import MAX_TOKENS, is_file, read_task
from secateur.errors import InputError


def test_every_form(tmp_path: Path) -> None:
    rows: dict[str, dict[str, Any]] = {
        "choices": {"query": "Q?", "choices": ["a", "bc"], "gold": 1, "id": 7},
        "contexts": {"context_options": ["x", "y"], "continuation": "z", "gold": 0},
        "continuation": {"context": "x", "continuation": "z"},
        "answer": {"messages": [{"role": "user", "content": "hi"}], "answer": "x", "stop": "\n"},
        "label": {"text": "x", "label": "good"},
        "tags": {"tokens": ["x", "y"], "labels": ["good", -100]},
    }
    for form, row in rows.items():
        file = tmp_path / f"{form}.jsonl"
        file.write_text(json.dumps(row) + "\n\n" + json.dumps(row), encoding="utf-8")
        found = read_task(str(file))
        assert (found.form, found.name, len(found.items)) == (form, form, 2)
    assert read_task(str(tmp_path / "choices.jsonl")).items[0] == Choice((("Q?", " a"), ("Q?", " bc")), 1, (1, 2))
    assert read_task(str(tmp_path / "tags.jsonl")).items[0] == Tagged(("x", "y"), ("good", None))
    asked = read_task(str(tmp_path / "answer.jsonl")).items[0]
    assert asked == Question(({"role": "user", "content": "hi"},), ("x",), None, ("\n",), MAX_TOKENS)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"query": "x"}], "line 1 is no such item; its fields: 'query'; forms: {query, choices, gold}"),
        ([{"context": "x", "continuation": "y"}, {"text": "x", "label": 0}], "line 2 .* of the form {context, cont"),
        ([{"query": "x", "choices": ["a"], "gold": 0}], "'choices' must be a list of 2 to 1000 strings"),
        ([{"query": "x", "choices": ["a", ""], "gold": 0}], "'choices' must be a non-empty string"),
        ([{"query": "x", "choices": ["a", "b"], "gold": 2}], "'gold' is 2; give the number of the right one, 0 to 1"),
        ([{"query": "x", "choices": ["a", "b"], "gold": True}], "'gold' is True"),
        ([{"query": "\ud800", "choices": ["a", "b"], "gold": 0}], "half a surrogate pair"),
        ([{"context": 3, "continuation": "y"}], "'context' must be a string"),
        ([{"prompt": "x", "regex": "("}], "'regex' is no regular expression"),
        ([{"prompt": "x", "answer": "y", "max_tokens": 0}], "'max_tokens' is 0"),
        ([{"messages": "x", "answer": "y"}], "'messages' must be a list"),
        ([{"tokens": ["x"], "labels": [0, 1]}], "1 tokens have 2 labels"),
        ([{"tokens": ["x"], "labels": [0.5]}], "'labels' must be a list of whole numbers or names"),
        ([{"text": "x", "label": None}], "'label' must be a whole number"),
        ([[]], "line 1 is not a JSON object"),
    ],
)
def test_what_is_no_item(tmp_path: Path, rows: list[Any], says: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(InputError, match=says):
        read_task(str(file))


def test_files_and_names(tmp_path: Path) -> None:
    assert is_file("gone.jsonl")
    assert not is_file("arc_easy")
    with pytest.raises(InputError, match=r"'gone\.jsonl' does not exist"):
        read_task("gone.jsonl")
    (tmp_path / "e.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="no item in it"):
        read_task(str(tmp_path / "e.jsonl"))
