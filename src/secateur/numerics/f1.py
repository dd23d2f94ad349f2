"""F1 of predicted classes: the harmonic mean of precision and recall."""

from __future__ import annotations

from collections.abc import Sequence


def macro_f1(found: Sequence[int], right: Sequence[int]) -> float:
    """The mean over classes of F1 = 2 tp / (2 tp + fp + fn), each class alike however rare it is.

    Args:
        found, right: class of each item. Classes that occur in neither don't count, as in scikit-learn.

    >>> macro_f1([0, 1, 1, 1], [0, 0, 1, 1])  # 2/3 of class 0 and 4/5 of class 1
    0.7333333333333334
    """
    scores = []
    for number in sorted({*found, *right}):
        both = sum(a == number == b for a, b in zip(found, right, strict=True))
        scores.append(2 * both / (found.count(number) + right.count(number)))
    return sum(scores) / len(scores)
