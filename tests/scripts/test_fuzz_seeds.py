"""What scripts/fuzz.py has once found: none of it takes anything down again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from _fuzz import herd

SEEDS = sorted((Path(__file__).parents[1] / "fuzz_seeds").glob("*.json"))


@pytest.mark.parametrize("file", SEEDS, ids=[file.stem for file in SEEDS])
def test_a_case_that_was_kept(file: Path, tmp_path: Path) -> None:
    case = json.loads(file.read_text(encoding="utf-8"))
    root = tmp_path / "root"
    herd.build(case["target"], root)
    outcome, said = herd.replayed(case, root)
    assert outcome not in herd.BAD, said
