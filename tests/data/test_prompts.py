"""Prompts of the user's own: read, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.data.prompts import read_prompts
from secateur.errors import InputError


def test_lines_and_rows(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Once\n\n  def f(x):\n", encoding="utf-8")
    assert read_prompts(str(tmp_path / "p.txt")) == ["Once", "  def f(x):"]
    (tmp_path / "p.jsonl").write_text('{"prompt": "two\\nlines"}\n{"prompt": "b"}\n', encoding="utf-8")
    assert read_prompts(str(tmp_path / "p.jsonl")) == ["two\nlines", "b"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "\n \n", "holds 0 prompts; give 1 to 50"),
        ("p.txt", "a\n" * 51, "holds 51 prompts"),
        ("p.txt", "a" * (2**20 + 1), "more than 1,048,576 bytes"),
        ("p.jsonl", '{"text": "a"}\n', "has no 'prompt' that is text"),
        ("p.jsonl", '{"prompt": "\\ud800"}\n', "half a surrogate pair"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_prompts(str(tmp_path / name))
    with pytest.raises(InputError, match="is no file"):
        read_prompts(str(tmp_path / "none.txt"))
