"""The forecast counts what its formulas say, grows as it should, and reaches the terminal."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

import secateur
from secateur.analysis import forecast as f
from secateur.report.terminal.console import Console
from secateur.report.terminal.tables import print_anatomy
from tests.small import save_tiny

MACHINE = f.Machine("any", 1e12, 64 * 10**9, 10**12)
FAST, BEST = f.Way("weight", "fast"), f.Way("weight", "best")


def test_a_llama_has_the_parameters_that_it_has() -> None:
    eight = f.llama(32, 4096, 14_336, (32, 8, 128), 128_256, tied=False)
    assert eight.parameters == 8_030_261_248
    assert eight.inputs == [4096, 4096, 4096, 14_336]


def test_time_is_counted() -> None:
    """One Linear of one layer, by hand."""
    shape = f.Shape(1, ((30, 20, "a"),), 20, 0, 600, 1200, samples=4, length=8)
    forward = 32 * (2 * 600 + 4 * 8 * 20)
    assert f.flops_of(shape, FAST) == 2 * forward + 2 * 32 * 20**2 + 2 * 2 * 20**3 + 30 * 20**2
    assert f.flops_of(replace(shape, layers=3), FAST) == 3 * f.flops_of(shape, FAST)
    assert f.flops_of(shape, FAST, processes=4) < f.flops_of(shape, FAST)
    assert f.flops_of(shape, FAST, halves=4) == f.flops_of(shape, FAST) - 0.75 * 2 * forward


def test_better_takes_longer_and_less_memory_puts_more_on_disk() -> None:
    shape = f.llama(16, 2048, 8192, (32, 8, 64), 128_256, tied=True)
    rows = [f.row(shape, MACHINE, way) for way in f.WAYS[:3]]
    assert rows[0]["seconds"] < rows[1]["seconds"] < rows[2]["seconds"]
    assert rows[0]["memory_bytes"] < rows[2]["memory_bytes"]
    small = f.row(shape, replace(MACHINE, memory=10**9), BEST)
    assert small["disk_bytes"] > rows[2]["disk_bytes"] >= 2 * shape.bytes_on_disk
    assert small["memory_bytes"] < rows[2]["memory_bytes"]
    assert not small["fits"]


def test_inspect_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f, "PROBE_SECONDS", 0.0)
    found = secateur.inspect(save_tiny(tmp_path / "model"), forecast=True)
    assert json.loads(json.dumps(found)) == found
    told = found["forecast"]
    assert [(row["cut"], row["quality"]) for row in told["rows"]] == [(way.cut, way.quality) for way in f.WAYS]
    assert told["length"] == 32
    assert told["flops_per_second"] > 1e8
    assert told["bf16_times_as_fast"] > 0
    for width, ratio in ((80, 1.2), (120, 3.86)):
        file, told["bf16_times_as_fast"] = io.StringIO(), ratio
        print_anatomy(found, Console(file=file, width=width, markup=False, highlight=False))
        assert ("3.9 times as fast here" in file.getvalue()) == (ratio > 2)
        assert "What pruning takes here, by formulas" in file.getvalue()
        assert all(len(line) <= width for line in file.getvalue().splitlines())
    assert "forecast" not in secateur.inspect(tmp_path / "model")
