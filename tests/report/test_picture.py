"""The picture of a run in letters: bars as long as the figures, and no line longer than the terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from secateur.report.terminal.console import Console
from secateur.report.terminal.picture import bar, levels, print_picture
from tests.report import fixtures


def shown(report: dict[str, Any], width: int, out: Path) -> list[str]:
    file = io.StringIO()
    print_picture(report, out, Console(file=file, width=width, markup=False, highlight=False))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("name", fixtures.ALL)
def test_it_fits(name: str, width: int, tmp_path: Path) -> None:
    assert all(len(line) <= width for line in shown(fixtures.ALL[name](), width, tmp_path))


def test_bars_are_as_long_as_the_figures(tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    lines = shown(fixtures.structured(), 100, tmp_path)
    at = next(n for n, line in enumerate(lines) if line.startswith("Perplexity"))
    before, after = (line.count("█") for line in lines[at : at + 2])
    assert after == 40
    assert before == int(40 * 4.751 / 8.893)
    assert lines[at + 1].endswith("8.893 1.87×")
    assert any(line.startswith("FFN channels, by layer") and "25.0% gone" in line for line in lines)
    assert lines[-1].startswith("The page with all of it: ")
    assert "Not yet worth it" in " ".join(lines)


def test_a_stray_zero_among_the_weights_is_no_row_of_its_own(tmp_path: Path) -> None:
    report = fixtures.structured()
    for side in report["evaluation"].values():
        if isinstance(side, dict) and "parameters" in side:
            side["nonzero_parameters"] = side["parameters"] - 1
    assert not any(line.startswith("Non-zero") for line in shown(report, 100, tmp_path))
    assert any(line.startswith("Non-zero") for line in shown(fixtures.unstructured(), 100, tmp_path))


def test_the_ends_of_the_scales() -> None:
    assert [bar(share, 2) for share in (0, 0.5, 1, 7)] == ["", "█", "██", "██"]
    assert levels([0, 1, 2], 2) == "▁▅█"
    assert levels([0.0], 0.0) == "▁"
