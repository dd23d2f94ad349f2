"""A decision is made once: found again after an interruption, and the same on every rank."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.system import distributed
from secateur.system.decisions import Decisions, Unwritten


def never() -> Any:
    raise AssertionError


def test_what_was_decided_is_not_decided_again() -> None:
    notes = Unwritten()
    assert Decisions(notes).decide("layers", lambda: {"kept": [0, 2]}) == {"kept": [0, 2]}
    assert notes == {"layers": {"kept": [0, 2]}}
    assert Decisions(notes).decide("layers", never) == {"kept": [0, 2]}
    assert Decisions(notes).known("allocation") is None


def test_another_rank_hears_the_first_and_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first rank says is given here; the second one has no notes of its own."""
    said = iter([None, "the first rank's", "noted before"])
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "share_object", lambda value, source: next(said))
    notes = Unwritten(known="mine")
    decisions = Decisions(notes)
    assert decisions.decide("key", lambda: "the second rank's") == "the first rank's"
    assert decisions.decide("key", never) == "noted before"
    assert notes == {"known": "mine"}
    assert distributed.on_first(never) is None
