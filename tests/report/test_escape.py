"""What others have named doesn't reach the terminal as a command to it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from secateur.cli.app import main
from secateur.report.terminal.console import Console
from secateur.report.terminal.escape import printable
from secateur.report.terminal.run import print_report
from secateur.report.terminal.tables import print_generation
from secateur.system.monitor import Monitor
from tests.report import fixtures

HOSTILE = "a\x1b]0;title\x07\x9b31m\u202eb"


def test_control_characters_are_spelled_out_and_words_stay() -> None:
    assert printable(HOSTILE) == r"a\x1b]0;title\x07\x9b31m\u202eb"
    assert printable("größe\t日本\n") == "größe\t日本\n"


def clean(text: str) -> bool:
    return not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)


def test_tables_and_panels_show_them_escaped() -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None, markup=False)
    print_generation({"model": HOSTILE, "prompt": HOSTILE, "text": HOSTILE}, console)
    report = fixtures.structured() | {"warnings": [HOSTILE]}
    print_report(report, HOSTILE, console)
    assert clean(console.file.getvalue())  # type: ignore[attr-defined]
    assert r"\x1b]0;title" in console.file.getvalue()  # type: ignore[attr-defined]


def test_colours_of_our_own_still_reach_it() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print("[red]x[/red]")
    assert "\x1b[31m" in console.file.getvalue()  # type: ignore[attr-defined]


def test_lines_of_a_run_and_errors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with Monitor(torch.device("cpu")) as monitor:
        monitor.say(HOSTILE)
    with pytest.raises(SystemExit):
        main(["inspect", f"/nowhere/{HOSTILE}"])
    said = capsys.readouterr().err
    assert clean(said)
    assert "no such folder" in said


def test_nothing_else_is_shown_on() -> None:
    source = Path(printable.__code__.co_filename).parents[2]
    users = [file.name for file in source.rglob("*.py") if "rich.console import Console\n" in file.read_text()]
    assert users == []
