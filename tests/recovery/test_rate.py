"""The search for a learning rate, on losses that are known; and which layers are compared."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from secateur.errors import InputError
from secateur.recovery.rate import HIGHEST, LOWEST, Tried, choose, search, short_steps
from secateur.recovery.teacher import kept_layers, layer_map


def valley(best: float) -> object:
    return lambda rate: abs(math.log10(rate / best))


@pytest.mark.parametrize("best", [3e-5, 3e-4, 1e-3, 3e-3, 3e-2])
def test_the_search_finds_the_valley(best: float) -> None:
    tried = search(valley(best), 3e-4)  # type: ignore[arg-type]
    lowest = min(tried, key=lambda t: t.held_out)
    assert abs(math.log10(lowest.rate / best)) <= 0.26
    assert tried == sorted(tried)
    assert len(tried) <= 6


def test_the_search_ends_where_rates_end() -> None:
    down = search(lambda rate: rate, 3e-4)
    up = search(lambda rate: -rate, 3e-4)
    assert min(t.rate for t in down) >= LOWEST
    assert max(t.rate for t in up) <= HIGHEST


def test_a_run_that_explodes_is_no_candidate() -> None:
    tried = search(lambda rate: math.inf if rate > 1e-4 else rate, 3e-4)
    assert choose(tried, 1.0) < 1e-4


def test_the_highest_rate_of_those_that_won_nearly_the_most_is_taken() -> None:
    tried = [Tried(1e-4, 0.80), Tried(3e-4, 0.50), Tried(1e-3, 0.54), Tried(3e-3, 0.56), Tried(1e-2, 1.20)]
    assert choose(tried, 1.0) == 1e-3
    assert choose(tried, 0.8) == 3e-4
    assert choose(tried, 0.4) == 1e-4  # none helps: the least harm
    # As it was for two layers of five: a tenth of much is too much to lack.
    assert choose([Tried(3e-3, 2.516), Tried(1e-2, 2.262), Tried(3e-2, 2.361)], 4.074) == 1e-2


def test_short_runs_are_short() -> None:
    assert [short_steps(n) for n in (5, 100, 300, 900, 9000)] == [5, 10, 30, 40, 40]


def test_layers_learn_what_was_dropped_behind_them(tmp_path: Path) -> None:
    assert layer_map([0, 1, 2], 3) == [(1, 1), (2, 2), (3, 3)]
    assert layer_map([0, 3], 5) == [(1, 3), (2, 5)]
    plan = tmp_path / "plan.json"
    with pytest.raises(InputError, match="no plan"):
        kept_layers(2, 5, plan)
    plan.write_text('{"layers": [0, 3]}')
    assert kept_layers(2, 5, plan) == (0, 3)
    assert kept_layers(5, 5, tmp_path / "none") == (0, 1, 2, 3, 4)
