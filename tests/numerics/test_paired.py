from __future__ import annotations

import itertools
import math
import statistics

import pytest

from secateur.numerics.paired import paired, sign_test, standard_error


def test_the_sign_test_counts_coins() -> None:
    for better, worse in ((0, 5), (2, 7), (4, 4), (10, 1)):
        tosses = better + worse
        unlikely = abs(better - worse)
        as_odd = sum(abs(2 * sum(coins) - tosses) >= unlikely for coins in itertools.product((0, 1), repeat=tosses))
        assert sign_test(better, worse) == pytest.approx(as_odd / 2**tosses)
    assert sign_test(2000, 2500) == pytest.approx(math.erfc(499 / math.sqrt(4500) / math.sqrt(2)), rel=0.02)


def test_pairs() -> None:
    own, other = [1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]
    found = paired(own, other)
    assert (found.difference, found.better, found.worse, found.p) == (0.5, 2, 0, 0.5)
    assert found.stderr == pytest.approx(statistics.stdev([1, 0, 0, 1]) / 2)
    assert standard_error([3.0]) is None
