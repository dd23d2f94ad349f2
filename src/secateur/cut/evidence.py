"""Why units went: gathered while their statistics are still there, small enough to be kept for every one of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.model.sites import Site
from secateur.numerics.moments import Moments
from secateur.numerics.redundancy import redundancy
from secateur.numerics.token_samples import PEAKS


@dataclass(frozen=True)
class Evidence:
    """One entry for each removed unit of a site, in ascending order.

    Args:
        bits, energy, restored, carriers, shares: see `numerics.redundancy`.
        places: numbers of the calibration tokens at which it was largest, the largest first; empty for experts,
            which see only some of the tokens.
        values: its activation there; of a head, that of its largest component.
    """

    bits: tuple[float, ...]
    energy: tuple[float, ...]
    restored: tuple[float, ...]
    predictors: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]
    places: tuple[tuple[int, ...], ...]
    values: tuple[tuple[float, ...], ...]


def evidence_of(site: Site, consumer: Tensor, moments: Moments, about: Moments, keep: Tensor) -> Evidence:
    """Evidence for the units that `keep` (units,) leaves out.

    Args:
        consumer: (out, units * width), as it was before the cut.
        moments: of its inputs. about: the same, about the means where the refit has a bias.
    """
    found = redundancy(consumer, about.gram.to(consumer.device), keep, site.width)
    gone = (~keep).nonzero().flatten().tolist()
    fired = [_largest(moments, unit, site.width) if site.expert is None else ((), ()) for unit in gone]
    bits, energy, restored = (tuple(round(value, 6) for value in column.tolist()) for column in found[:3])
    return Evidence(
        bits=bits,
        energy=energy,
        restored=restored,
        predictors=tuple(tuple(row) for row in found.predictors.tolist()),
        shares=tuple(tuple(round(share, 4) for share in row) for row in found.shares.tolist()),
        places=tuple(places for places, _ in fired),
        values=tuple(values for _, values in fired),
    )


def _largest(moments: Moments, unit: int, width: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(tokens, values) at which a unit was largest; each token once."""
    if moments.token_samples is None or "peaks" not in moments.needs:
        return (), ()
    values, places = (t[:, unit * width : (unit + 1) * width].flatten() for t in moments.token_samples.max_activating)
    found: dict[int, float] = {}
    for index in torch.argsort(values.abs(), descending=True, stable=True).tolist():
        if float(values[index]) != 0:
            found.setdefault(int(places[index]), round(float(values[index]), 4))
    best = list(found.items())[:PEAKS]
    return tuple(place for place, _ in best), tuple(value for _, value in best)
