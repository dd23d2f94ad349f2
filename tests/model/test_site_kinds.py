"""The table of kinds: complete, and what is drawn from it is what the rooms ask for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from secateur.methods import METHODS
from secateur.model import site_kinds
from secateur.model.site_kinds import HEADS, KINDS, REFITTED, SUB_BLOCKS, TURNS, UNIT_KINDS, units_of


def test_what_scores_a_kind_can_score_it() -> None:
    for name, kind in KINDS.items():
        able = [method for method in METHODS.values() if kind.ability in method.prunes]
        assert able, name
        assert kind.method is None or METHODS[kind.method] in able
        assert kind.unit
        assert kind.speeds_up


def test_units_have_their_turns() -> None:
    assert TURNS == ("latent", "kv_group", "query_head", "expert", "channel")
    assert UNIT_KINDS == ("channel", "query_head", "kv_group", "latent", "expert")
    assert {"channel", "query_head", "kv_group", "latent"} == REFITTED
    assert {"query_head", "kv_group"} == HEADS
    assert [units_of(part) for part in SUB_BLOCKS] == [HEADS | {"latent"}, {"expert", "channel"}]


def test_it_needs_no_torch() -> None:
    file = Path(str(site_kinds.__file__))
    code = f"import runpy, sys; runpy.run_path({str(file)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
