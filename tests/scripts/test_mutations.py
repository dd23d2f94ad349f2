"""The table of mutations is about the code as it is: a row that fits nowhere breaks nothing, and proves nothing."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_mutation_has_its_place() -> None:
    rows = tomllib.loads((ROOT / "scripts" / "mutations.toml").read_text(encoding="utf-8"))
    assert len(rows) >= 25
    for name, row in rows.items():
        text = (ROOT / "src" / "secateur" / row["file"]).read_text(encoding="utf-8")
        assert text.count(row["old"]) == 1, name
        assert all((ROOT / test).exists() for test in row["tests"] if test.startswith("tests/")), name
