"""One ranking for all sites: scores become curves that can be compared.

Scores of different layers have different scales, so each site's are divided by their sum: the curve says which part
of the site's own importance is lost. A parameter that holds less of it than others, wherever it is, goes first.
"""

from __future__ import annotations

import torch
from torch import Tensor

POINTS = 256  # of a curve, at most


def curve_of(scores: Tensor, running: bool = False) -> tuple[tuple[float, float], ...]:
    """(fraction that goes, fraction of the importance lost) with the least important going first.

    Args:
        scores: (units,), not negative.
        running: the scores are totals already: what is lost when this unit goes after all with lower scores.
    """
    ranked = scores.flatten().double().sort().values
    lost = ranked if running else ranked.cumsum(0)
    total = float(lost[-1])
    count = len(lost)
    at = torch.linspace(0, count - 1, min(count, POINTS)).round().long().unique()
    return tuple((float(i + 1) / count, float(lost[i]) / total if total > 0 else 0.0) for i in at)
