"""Openings, repetition and code in what models write."""

from __future__ import annotations

import pytest

from secateur.report.passages import is_code, opening, without_repetition


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("d of it. The cat sat on the mat and went on to sleep there.", 4, "The cat sat on"),
        (
            "oken line\n    def read(path):\n        return path.read_text() or None",
            3,
            "def read(path):\n        return",
        ),
        ("ddle of a word without any end that could be seen in it", 3, "of a word"),
        ("One. " + "", 3, "One."),
        ("   ", 3, ""),
        ("a very long sentence that ends only here, at the end. Then.", 2, "very long"),
    ],
)
def test_an_opening_begins_where_a_sentence_does(text: str, words: int, found: str) -> None:
    assert opening(text, words) == found


@pytest.mark.parametrize(
    ("text", "shown", "repeats"),
    [
        ("os.path" + ".path" * 20, "os.path.path", True),
        ("It rained. " + "#\n" * 23, "It rained. #\n#\n", True),
        ("He said no. " * 5, "He said no. " * 2, True),
        ("ha ha ha", "ha ha ha", False),
        ("a line\n\n\n\n\n\n\n\n\n\n\n\n\nand another", "a line\n\n\n\n\n\n\n\n\n\n\n\n\nand another", False),
        ("no repetition in this one at all", "no repetition in this one at all", False),
        ("1000000", "1000000", False),
    ],
)
def test_repetition_is_cut(text: str, shown: str, repeats: bool) -> None:
    assert without_repetition(text) == (shown, repeats)


def test_code_is_known_from_prose() -> None:
    assert is_code("def f(x):\n    if x:\n        return 1\n")
    assert is_code("for (;;) {\n  x = 1;\n}\n")
    assert not is_code("Once upon a time there was a cat.\nIt sat on a mat, and looked at the moon.\n")
    assert not is_code("one line")
