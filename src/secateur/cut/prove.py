"""Before units of a detected architecture go, on the model itself: without them a layer must compute what it does
with zeros in their place.

Detection has proved that on a small copy. Here it's asked of the first layer of each kind, with its own weights and
the first calibration sequences, so that nothing that is different in the large is cut on trust.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from secateur.calibration.walk import Block
from secateur.errors import VerificationError
from secateur.model.sites import Site
from secateur.model.surgery import remove, update_heads, zero

TOLERANCE = 2e-3  # of the layer's largest output; halves of a precision have less


@torch.no_grad()
def prove_removal(block: Block, cuts: list[tuple[Site, Tensor]]) -> None:
    """Compares both on one batch, once for each kind of layer and of site.

    Raises:
        VerificationError: they differ.
    """
    streamed, family = block.streamed, block.streamed.checkpoint.family
    if not family.anatomies:
        return
    key = (family.kinds[block.index], cuts[0][0].kind)
    if key in streamed.proved:
        return
    streamed.proved.add(key)
    outputs = []
    for way in ("zero", "remove"):
        layer = copy.deepcopy(block.layer)
        if way == "zero":
            for site, keep in cuts:
                zero(layer, site, keep)
        else:
            remove(layer, cuts)
            update_heads(layer, family, 0)
        outputs.append(block.stream.forward(layer, block.index, 0, streamed.device).float())
    off = float((outputs[0] - outputs[1]).abs().max()) / (float(outputs[0].abs().max()) or 1.0)
    if not off <= max(TOLERANCE, 16 * torch.finfo(streamed.dtype).eps):
        raise VerificationError(
            f"{cuts[0][0].name}: without the units that go the layer computes something else than with zeros in "
            f"their place ({off:.1e} of its largest output); nothing was saved; name other kinds of sites"
        )
