"""Medians, their intervals, and when two timings differ."""

from __future__ import annotations

import random
import statistics

import pytest

from secateur.report.compared import compared, load_warning
from secateur.report.samples import NO_DIFFERENCE, Spread, busy, differ, per_second, ratio, spread


def test_few_values_are_their_own_interval() -> None:
    assert spread([2.0]) == (2.0, 2.0, 2.0)
    assert spread([3.0, 9.0, 1.0]) == (1.0, 3.0, 9.0)


def test_one_slow_run_of_many_moves_neither_the_median_nor_its_interval() -> None:
    calm = [1.0 + 0.001 * n for n in range(25)]
    assert spread([*calm[:-1], 100.0]) == spread(calm)


@pytest.mark.parametrize("count", [9, 25])
def test_the_interval_holds_the_true_median_nineteen_times_of_twenty(count: int) -> None:
    draw = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, _, high = spread([draw.lognormvariate(0.0, 0.5) for _ in range(count)])
        hits += low <= 1.0 <= high
    assert 0.93 < hits / 2000 <= 1.0


def test_two_samples_of_the_same_thing_rarely_differ_and_others_do() -> None:
    draw = random.Random(1)

    def sample(middle: float) -> Spread:
        return spread([middle * draw.lognormvariate(0.0, 0.1) for _ in range(15)])

    assert sum(differ(sample(1.0), sample(1.0)) for _ in range(1000)) < 20
    assert sum(differ(sample(1.0), sample(2.0)) for _ in range(100)) == 100


def test_rates_and_ratios_keep_low_below_high() -> None:
    rate = per_second(10.0, spread([1.0, 2.0, 5.0]))
    assert rate == (2.0, 5.0, 10.0)
    assert ratio(rate, rate).median == 1.0
    assert ratio(rate, rate).low < 1.0 < ratio(rate, rate).high
    assert statistics.median(rate) == rate.median


def side(decode: float, low: float, high: float, **more: object) -> dict[str, object]:
    return {"decode_tokens_per_s": decode, "decode_range": [low, high], **more}


def test_a_ratio_whose_intervals_overlap_is_no_difference() -> None:
    (row,) = compared(side(10.0, 5.0, 14.0), side(25.0, 12.0, 30.0))
    assert (row.ratio, row.verdict, row.note) == ("2.50×", "same", NO_DIFFERENCE)
    (row,) = compared(side(10.0, 9.0, 11.0), side(25.0, 20.0, 30.0))
    assert (row.verdict, row.note) == ("better", "1.82× to 3.33×")
    (row,) = compared({"decode_tokens_per_s": 10.0}, {"decode_tokens_per_s": 25.0})  # an older report
    assert (row.verdict, row.note) == ("better", "")


def test_parameters_that_are_zeros_are_said_beside_those_that_are_there() -> None:
    before = {"parameters": 100, "nonzero_parameters": 100}
    rows = {row.key: row for row in compared(before, {"parameters": 100, "nonzero_parameters": 52})}
    assert rows["parameters"].note == "0.52× non-zero"
    rows = {row.key: row for row in compared(before, {"parameters": 52, "nonzero_parameters": 52})}
    assert rows["parameters"].note == ""


def test_more_load_than_cores_is_a_warning() -> None:
    assert "load 9.5 on 2 cores" in str(load_warning({"load_before": 9.5, "cores": 2}))
    assert busy(1.9, 2) is None
    assert load_warning({}) is None
    assert busy(None, 2) is None
