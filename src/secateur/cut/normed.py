"""Refits of Linears that read what a norm over all units of a site hands on: latents of attention.

Surgery makes up for the number of units that the norm's mean is over, so a layer without some computes what it does
with zeros in their place. But with zeros there, too, the norm divides by less, and what stays is larger than the
dense model's by √(all energy / kept energy), token by token. The refit is solved on the dense model's inputs, so its
weights are scaled back by the mean of that:

    √(E Σ_kept x² / E Σ x²)     x: inputs of the Linear, divided by the norm's gains
"""

from __future__ import annotations

from torch import Tensor

from secateur.calibration.walk import Block
from secateur.model.anatomy import tensor_of
from secateur.model.linears import Linear
from secateur.model.site_kinds import KINDS
from secateur.model.sites import Site
from secateur.numerics.least_squares import Fit, least_squares_columns, masked_least_squares
from secateur.numerics.moments import Moments
from secateur.numerics.support import support_of


def refitted(
    weight: Tensor, gram: Tensor, columns: Tensor, support: Tensor | None, mean: Tensor | None = None
) -> tuple[Tensor, Fit]:
    """W (out, in) with zeros in the columns that go, the others solved for what it computed; zeros stay zeros: what
    an earlier pruning took isn't filled in again.

    Args:
        columns: bool (in,), True = stays.
        support: where the Linear's own weights aren't zero; None = nearly everywhere.
        mean: of the inputs, where a bias may help.
    """
    if support is None:
        fit = least_squares_columns(weight, gram, columns, mean=mean)
        new = weight.where(columns, 0.0)
        new[:, columns] = fit.weight
        return new, fit
    fit = masked_least_squares(weight, gram, columns & support, mean=mean)
    return fit.weight.to(weight.device), fit


def shrinkage(block: Block, site: Site, moments: Moments, keep: Tensor) -> float:
    """What a refit of the site's consumer is scaled by; 1 where no norm is in front of it.

    Args:
        keep: bool (units,).
    """
    if not KINDS[site.kind].normed:
        return 1.0
    gain = next(tensor_of(block.layer, cut.parameter) for cut in site.cuts if cut.rescale).float().cpu()
    energy = (moments.second_moment.cpu() / gain.square()).where(gain != 0, 0.0)
    whole = float(energy.sum())
    return float((energy[keep].sum() / whole).sqrt()) if whole > 0 else 1.0


def refit_beside(block: Block, consumer: Linear, gram: Tensor, columns: Tensor, factor: float) -> None:
    """Refits the other Linears that read the same (the indexer of DeepSeek-V3.2), in place."""
    for linear in block.linears:
        if linear.source == consumer.source and linear.name != consumer.name:
            weight = linear.weight
            linear.weight = refitted(weight, gram, columns, support_of(weight))[0] * factor
