"""What is shown and what is written down while a run works."""

from __future__ import annotations

import io
import json
import mmap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from secateur.report.terminal.listening import tell
from secateur.system import monitor as progress
from secateur.system.monitor import Monitor
from secateur.system.peak_memory import PeakMemory

CPU = torch.device("cpu")
Watched = Callable[..., tuple[Monitor, io.StringIO]]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """terminal, other arguments -> a monitor and what it shows."""

    def make(terminal: bool = False, **how: Any) -> tuple[Monitor, io.StringIO]:
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=terminal, width=80)
        monkeypatch.setattr(progress, "Console", lambda stderr: console)
        return Monitor(CPU, **how), shown

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    return make


def work(monitor: Monitor) -> None:
    with monitor, monitor.stage("open"):
        pass
    with monitor.stage("prune", 3) as step:
        for i in range(3):
            step(f"layer {i}")


def events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_plain_lines_where_there_is_no_terminal(watched: Watched) -> None:
    monitor, shown = watched(planned=("open", "prune", "save"))
    work(monitor)
    lines = shown.getvalue().splitlines()
    assert lines[:2] == ["1/3 open ...", "2/3 prune ..."]
    assert lines[2].startswith("2/3 prune: 1/3, layer 0, 0:00 left, ")
    assert "GiB, peak " in lines[2]
    assert len(lines) == 5
    assert "\x1b" not in shown.getvalue()


def test_plain_lines_in_ci(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    monitor, shown = watched(terminal=True)
    work(monitor)
    assert "2/2 prune" in shown.getvalue()
    assert "━" not in shown.getvalue()


def test_plain_lines_come_now_and_then(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 1000.0)
    monitor, shown = watched()
    work(monitor)
    assert shown.getvalue().splitlines() == ["1/1 open ...", "2/2 prune ..."]


def test_one_live_line_on_a_terminal(watched: Watched) -> None:
    monitor, shown = watched(terminal=True, planned=("open", "prune"))
    with monitor, monitor.stage("prune", 20) as step:
        step("layer 11, done before", skipped=True)
        step("layer 12")
        time.sleep(0.5)
        assert monitor._live is not None
        rendered = Console(width=80, file=io.StringIO())
        rendered.print(monitor._live.get_renderable())
        text = rendered.file.getvalue()  # type: ignore[attr-defined]
    assert len(text.splitlines()) == 1
    assert text.startswith("1/2 prune ")
    for part in ("2/20, layer 12", "left", "GiB, peak"):
        assert part in text
    assert shown.getvalue().endswith("\x1b[2K"), "nothing stays on the screen"


def test_a_stage_that_cannot_count_hears_what_is_told_below(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(progress, "PART_SECONDS", 0.0)
    monitor, shown = watched()
    monitor.record(tmp_path / "events.jsonl")
    tell("nobody listens", 1, 2)
    with monitor, monitor.stage("text"):
        for done in range(3):
            tell("reading", done, 4)
    with monitor.stage("prune", 1) as step:
        tell("not of this stage", 1, 2)
        step("layer 0")
    lines = shown.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines[:4]] == ["1/1 text ...", *(f"1/1 text: {n}/4" for n in range(3))]
    assert "reading, 0:00 left" in lines[3]
    steps = [event for event in events(tmp_path / "events.jsonl") if event["event"] == "step"]
    assert [(event["stage"], event["done"], event["total"]) for event in steps] == [
        ("text", 0, 4),
        ("text", 1, 4),
        ("text", 2, 4),
        ("prune", 1, 1),
    ]
    assert "nobody" not in shown.getvalue()
    assert "not of this stage" not in shown.getvalue()


def test_quiet_shows_nothing(watched: Watched) -> None:
    for terminal in (False, True):
        monitor, shown = watched(terminal=terminal, quiet=True)
        work(monitor)
        assert shown.getvalue() == ""


def test_events_are_written_whatever_is_shown(watched: Watched, tmp_path: Path) -> None:
    monitor, _ = watched(quiet=True, planned=("open", "prune"))
    with monitor.stage("open"):
        pass
    monitor.record(tmp_path / "events.jsonl", ranks=2, resumed=True)
    with monitor.stage("prune", 2) as step:
        step("layer 0", skipped=True)
        step("layer 1")
    monitor.close()
    found = events(tmp_path / "events.jsonl")
    assert [e["event"] for e in found] == ["stage", "stage_end", "run", "stage", "step", "step", "stage_end"]
    assert [e["time"] for e in found] == sorted(e["time"] for e in found)
    run, stage, skipped, step_, end = (
        {key: value for key, value in event.items() if key not in ("time", "event")} for event in found[2:]
    )
    assert run == {"stages": ["open", "prune"], "ranks": 2, "resumed": True}
    assert stage == {"name": "prune", "number": 2, "of": 2, "total": 2}
    assert skipped["left"] is None
    assert (step_["stage"], step_["done"], step_["total"], step_["text"], step_["left"]) == (
        "prune",
        2,
        2,
        "layer 1",
        0,
    )
    assert step_["memory_bytes"] > 1e6
    assert end["name"] == "prune"
    assert end["peak_memory_bytes"] >= step_["memory_bytes"]
    assert [stage.name for stage in monitor.stages] == ["open", "prune"]


def test_events_of_a_resumed_run_follow_those_before(tmp_path: Path) -> None:
    for resumed in (False, True):
        with Monitor(CPU, quiet=True) as monitor:
            monitor.record(tmp_path / "events.jsonl", resumed=resumed)
    assert [event["resumed"] for event in events(tmp_path / "events.jsonl")] == [False, True]


def test_events_are_no_reason_to_fail_once_the_work_area_is_gone(tmp_path: Path) -> None:
    with Monitor(CPU, quiet=True) as monitor:
        monitor.record(tmp_path / "gone" / "events.jsonl")


def test_the_time_left_follows_the_latest_steps(tmp_path: Path) -> None:
    with Monitor(CPU, quiet=True) as monitor:
        monitor.record(tmp_path / "events.jsonl")
        with monitor.stage("prune", 12) as step:
            time.sleep(0.2)
            for _ in range(9):
                step()
            step()
    left = [event["left"] for event in events(tmp_path / "events.jsonl") if event["event"] == "step"]
    assert left[0] == pytest.approx(0.2 * 11, rel=0.2)
    assert left[-1] < 0.2, "the slow first step is forgotten"


def test_peak_memory_is_seen_between_steps() -> None:
    memory = PeakMemory(CPU)
    memory.take()
    before = memory.now
    held = mmap.mmap(-1, 64 << 20)  # no tensor: malloc may put one into a hole that it keeps
    for page in range(0, 64 << 20, mmap.PAGESIZE):
        held[page] = 1
    time.sleep(0.2)
    held.close()
    time.sleep(0.2)  # seen by no sample any more
    assert memory.take() > before + (32 << 20)
    assert memory.take() < before + (32 << 20)
    memory.close()


def test_a_sample_that_is_being_taken_does_not_bring_an_old_peak_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling, taken = threading.Event(), threading.Event()

    def slow(memory: PeakMemory) -> int:
        if threading.current_thread() is not threading.main_thread() and memory._peak == 1000:
            sampling.set()
            taken.wait(0.2)
        return 1

    monkeypatch.setattr(PeakMemory, "now", property(slow))
    memory = PeakMemory(CPU)
    with memory._lock:
        memory._peak = 1000
    assert sampling.wait(10)
    assert memory.take() == 1000
    taken.set()
    time.sleep(0.2)
    assert memory.take() == 1
    memory.close()
