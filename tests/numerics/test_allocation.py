"""How many units stay."""

from __future__ import annotations

import itertools

import pytest

from secateur.numerics.keep_counts import keep_count


@pytest.mark.parametrize(
    ("units", "sparsity", "groups", "round_to", "expected"),
    [
        (172, 0.25, 1, 1, 129),
        (172, 0.5, 1, 1, 86),
        (512, 0.25, 1, 64, 384),
        (512, 0.3, 1, 64, 384),  # 358.4: 384 is nearer than 320
        (512, 0.3125, 1, 64, 384),  # 352, halfway: the larger
        (172, 0.25, 1, 64, 128),
        (100, 0.01, 1, 64, 64),  # never more than there are: 100 is no multiple of 64
        (6, 0.2, 2, 1, 4),
        (8, 0.25, 4, 1, 8),  # 1.5 of 2 heads a group, halfway: the larger
        (8, 0.3, 4, 1, 4),
        (2, 0.5, 1, 1, 1),
        (4, 0.99, 1, 1, 1),  # one stays
        (8, 0.99, 4, 1, 4),  # one of each group stays
        (512, 0.999, 1, 64, 64),
        (32, 0.5, 1, 64, 32),  # no multiple fits: all stay
    ],
)
def test_known_counts(units: int, sparsity: float, groups: int, round_to: int, expected: int) -> None:
    assert keep_count(units, sparsity, groups, round_to) == expected


def test_whole_percentages_are_exact() -> None:
    assert [keep_count(100, percent / 100) for percent in range(1, 100)] == list(range(99, 0, -1))


def test_what_always_holds() -> None:
    for units, groups, round_to in itertools.product((1, 2, 8, 24, 172), (1, 2, 4), (1, 3, 8)):
        if units % groups:
            continue
        before = units
        for step in range(1, 100):
            sparsity = step / 100
            kept = keep_count(units, sparsity, groups, round_to)
            assert 1 <= kept <= units
            assert kept % groups == 0
            assert kept == units or kept % round_to == 0
            assert kept <= before  # more sparsity never keeps more
            before = kept
