"""The examples in docstrings: each runs, offline, and prints what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import secateur

SOURCE = Path(secateur.__file__).parent
FRONT_DOOR = ("secateur.api", "secateur.calibration.walk", "secateur.model.surgery")
WITH_EXAMPLES = [
    ".".join(("secateur", *file.relative_to(SOURCE).with_suffix("").parts))
    for file in sorted(SOURCE.rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_every_example_in_a_docstring_prints_what_it_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0, "the examples aren't in docstrings"
    assert found.failed == 0, capsys.readouterr().out


def test_the_front_door_is_shown_by_examples() -> None:
    assert set(FRONT_DOOR) <= set(WITH_EXAMPLES)
