"""benchmarks/README.md names every benchmark, and none that isn't there."""

from __future__ import annotations

import re
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_every_benchmark_has_a_row() -> None:
    rows = re.findall(r"^\| `python benchmarks/(\w+)\.py", (BENCHMARKS / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(file.stem for file in BENCHMARKS.glob("[a-z]*.py"))


def test_pages_that_it_names_are_there() -> None:
    for page in re.findall(r"`(docs/[\w.-]+)`", (BENCHMARKS / "README.md").read_text()):
        assert (BENCHMARKS.parent / page).is_file(), page
