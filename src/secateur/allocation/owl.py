"""Outlier-weighed layerwise sparsity (OWL, Yin et al. 2024, https://arxiv.org/abs/2310.05175): layers with more
outliers keep more.

D_l is the fraction of a layer's |W_ij| ‖x_j‖ that are more than M times their mean (section 3.2); sparsities lie
within λ of the one asked for, fall with D_l, and have it as their mean. M = 5 and λ = 0.08, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

OUTLIER = 5.0
BAND = 0.08


def outliers(scores: Tensor, times: float = OUTLIER) -> tuple[int, int]:
    """(how many scores are above `times` their mean, how many there are)."""
    return int((scores > times * scores.mean()).sum()), scores.numel()


def owl(ratios: Sequence[float], sparsity: float, band: float = BAND) -> list[float]:
    """Sparsity of each layer from its outlier ratio.

    >>> [round(s, 3) for s in owl([0.01, 0.03], 0.5)]
    [0.58, 0.42]
    """
    low, high = min(ratios), max(ratios)
    if high == low:
        return [sparsity] * len(ratios)
    band = min(band, sparsity, 1 - sparsity)  # nothing below nothing, nothing gone altogether
    kept = [2 * band * (ratio - low) / (high - low) for ratio in ratios]
    mean = sum(kept) / len(kept)
    return [sparsity + mean - own for own in kept]
