"""The live line of commands that have no stages, and what is told to it, also from other processes."""

from __future__ import annotations

import io
import json

import pytest

from secateur.report.terminal.console import Console
from secateur.report.terminal.listening import heard_already, listening, tell, telling
from secateur.system import display as shows
from secateur.system.child import Child, run
from secateur.system.display import Pace, clock, display, starting

Told = list[tuple[str, int, int]]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 80 letters."""
    shown = io.StringIO()
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(shows, "Console", lambda stderr: Console(file=shown, force_terminal=True, width=80))
    return shown


def test_one_line_that_is_wiped(screen: io.StringIO) -> None:
    with display("evaluate"):
        tell("loading weights", 1, 4)
    assert "evaluate" in screen.getvalue()
    assert "1/4, loading weights" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")
    assert not heard_already()


def test_whoever_shows_first_hears_the_rest(screen: io.StringIO) -> None:
    with display("evaluate"), display("evaluating"):
        tell("windows", 2, 3)
    assert "evaluating" not in screen.getvalue()
    assert "2/3, windows" in screen.getvalue()


@pytest.mark.parametrize("why", ["quiet", "no terminal", "CI", "heard"])
def test_nothing_is_shown(why: str, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "no terminal":
        monkeypatch.setattr(shows, "Console", lambda stderr: Console(file=screen))
    if why == "CI":
        monkeypatch.setenv("CI", "1")
    told: Told = []
    listener = (lambda *parts: told.append(parts)) if why == "heard" else None
    with listening(listener), display("evaluate", quiet=why == "quiet"):
        tell("windows", 2, 3)
    assert screen.getvalue() == ""
    assert told == ([("windows", 2, 3)] if why == "heard" else [])


def test_the_line_before_the_imports_is_only_for_the_imports(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    with starting():
        pass
    assert screen.getvalue() == "", "transformers is there already"
    monkeypatch.delitem(shows.sys.modules, "transformers")
    monkeypatch.setenv("RANK", "1")
    with starting():
        pass
    assert screen.getvalue() == "", "the first process shows it"
    monkeypatch.setenv("RANK", "0")
    with starting():
        pass
    assert "loading torch" in screen.getvalue()


def test_pace_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr(shows.time, "monotonic", lambda: next(now))
    pace = Pace()
    assert pace.left("a", 0, 4) is None
    assert pace.left("a", 2, 4) == 10.0
    assert pace.left("b", 0, 4) is None
    assert [clock(seconds) for seconds in (4.4, 61, 3723)] == ["0:04", "1:01", "1:02:03"]


TELLS = """
import sys
from secateur.report.terminal.listening import tell, telling_parent
with telling_parent():
    tell("in the child", 1, 2)
print("the answer")
print(" a complaint ", file=sys.stderr)
sys.exit(3)
"""
ANSWERS = """
from secateur.report.terminal.listening import tell, telling_parent
with telling_parent():
    tell("in the child", 1, 2)
print("noise")
print("mark:" + input())
"""


def test_what_a_child_tells_is_told_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told: Told = []
    with listening(lambda *parts: told.append(parts)):
        assert run(["-c", TELLS]) == (3, "the answer", "a complaint")
        with Child(ANSWERS, {}, "mark:") as child:
            assert child.ask("word") == "word\n"
    assert told == [("in the child", 1, 2)] * 2


def test_parts_are_told_before_they_are_done() -> None:
    told: Told = []
    with listening(lambda *parts: told.append(parts)):
        assert list(telling("letters", "ab", 2)) == ["a", "b"]
    assert json.dumps(told) == '[["letters", 0, 2], ["letters", 1, 2]]'
