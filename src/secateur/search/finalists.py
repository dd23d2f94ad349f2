"""Which few candidates are made as models and compared: repair and training help some cuts more than others.

Divergences before the repair rank candidates of one sort well. Between sorts they don't: what was cut in depth gains
more by a training than what was cut in width. So the best of the other sort is among the finalists, whatever it
loses before.
"""

from __future__ import annotations

from collections.abc import Sequence

from secateur.model.site_kinds import WHOLE
from secateur.search.refine import Tried
from secateur.search.space import Candidate, Space


def finalists(tried: Sequence[Tried], space: Space, count: int) -> list[Candidate]:
    """The best candidate, the best that takes most of what it takes in the other way (depth or width), the next best.

    Args:
        tried: those that keep the wishes.
    """
    ranked = [one.candidate for one in sorted(tried, key=lambda one: one.measured)]
    if not ranked:
        return []
    other = next((one for one in ranked if _deep(one, space) != _deep(ranked[0], space)), None)
    return list(dict.fromkeys([ranked[0], *([] if other is None else [other]), *ranked]))[:count]


def _deep(candidate: Candidate, space: Space) -> bool:
    """Whether more goes with whole sub-blocks and layers than with units."""
    saved = [0.0, 0.0]
    for piece in candidate:
        saved[piece.kind in WHOLE] += space.saves[piece].params
    return saved[True] > saved[False]
