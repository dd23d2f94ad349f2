"""Masks against double loops; exact counts and stated ties."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import InputError
from secateur.numerics.patterns import Pattern, keep_best, removed_count


@pytest.mark.parametrize("text", ["free", "2:4", "4:8", "1:4"])
def test_round_trip(text: str) -> None:
    assert str(Pattern.parse(text)) == text


@pytest.mark.parametrize("text", ["", "4:2", "0:4", "4:4", "2:", "2x4", "semi", "-1:4", "1:512"])
def test_unknown_patterns_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="use free or N:M"):
        Pattern.parse(text)


def test_sparsity_is_what_is_removed() -> None:
    assert Pattern.parse("1:4").sparsity == 0.75
    assert Pattern.parse("free").sparsity is None


def test_width_that_does_not_divide_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"2:4 does not fit layers.0.up_proj: its 6 inputs"):
        Pattern.parse("2:4").validate(6, "layers.0.up_proj")
    Pattern.parse("2:4").validate(8, "layers.0.up_proj")
    Pattern.parse("free").validate(7, "layers.0.up_proj")


@pytest.mark.parametrize(
    ("count", "sparsity", "removed"), [(10, 0.5, 5), (5, 0.5, 3), (5, 0.3, 2), (3, 0.99, 3), (4, 0, 0)]
)
def test_removed_count_is_the_nearest(count: int, sparsity: float, removed: int) -> None:
    assert removed_count(count, sparsity) == removed


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("levels", [3, 1000])
def test_free_masks_equal_a_stable_sort(sparsity: float, levels: int) -> None:
    torch.manual_seed(0)
    scores = torch.randint(levels, (6, 17)).float()
    by_row = Pattern.parse("free").mask(scores, sparsity)
    for row, mask in zip(scores, by_row, strict=True):
        order = sorted(range(17), key=lambda i: (-float(row[i]), i))
        kept = set(order[: 17 - removed_count(17, sparsity)])
        assert mask.tolist() == [i in kept for i in range(17)]
    flat = Pattern.parse("free").mask(scores, sparsity, "matrix").flatten()
    order = sorted(range(102), key=lambda i: (-float(scores.flatten()[i]), i))
    kept = set(order[: 102 - removed_count(102, sparsity)])
    assert flat.tolist() == [i in kept for i in range(102)]


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (4, 8), (1, 4), (3, 4)])
@pytest.mark.parametrize("levels", [2, 1000])
def test_grouped_masks_equal_a_stable_sort(kept: int, of: int, levels: int) -> None:
    torch.manual_seed(0)
    scores = torch.randint(levels, (5, 24)).float()
    pattern = Pattern(kept, of)
    mask = pattern.mask(scores)
    assert pattern.holds(mask)
    for row in range(5):
        for start in range(0, 24, of):
            group = scores[row, start : start + of].tolist()
            best = set(sorted(range(of), key=lambda i: (-group[i], i))[:kept])
            assert mask[row, start : start + of].tolist() == [i in best for i in range(of)]


def test_a_broken_group_is_noticed() -> None:
    mask = torch.tensor([[True, True, True, False]])
    assert not Pattern.parse("2:4").holds(mask)
    assert Pattern.parse("free").holds(mask)


def test_scores_without_rank_are_refused() -> None:
    scores = torch.tensor([[1.0, float("nan"), 2.0, 3.0]])
    for pattern in ("free", "2:4"):
        with pytest.raises(InputError, match="NaN"):
            Pattern.parse(pattern).mask(scores, 0.5)


def test_infinite_scores_stay_and_counts_hold() -> None:
    inf = float("inf")
    assert keep_best(torch.tensor([inf, inf, 1.0, inf]), 2).tolist() == [True, True, False, False]
