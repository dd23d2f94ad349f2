"""What the terminal shows after a run, at the width of a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from secateur.report.terminal.run import print_report
from tests.report import fixtures


def shown(report: dict[str, object], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_report(report, "out/b", console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", fixtures.ALL)
def test_any_report_prints(name: str) -> None:
    assert "None" not in shown(fixtures.ALL[name]())


def test_before_and_after_with_ratios() -> None:
    lines = [" ".join(line.split()) for line in shown(fixtures.structured()).splitlines()]
    assert "Perplexity 4.751 8.893 1.87×" in lines
    assert "Parameters 3,147,264 2,554,368 0.81×" in lines
    assert any(line.startswith("FFN channels 25.0% 2,304 of 3,072") for line in lines)
    assert any("out/b/report.html" in line for line in lines)


def test_words_from_outside_are_not_markup() -> None:
    report = fixtures.structured() | {"warnings": ["a [red]b[/red] [/nothing]"]}
    assert "[red]b[/red] [/nothing]" in shown(report)
