"""Before units of a detected architecture go, on the model itself: without them a layer must compute what it does
with zeros in their place.

Detection has proved that on a small copy. Here it's asked of the first layer of each kind, with its own weights and
the first calibration sequences, so that nothing that is different in the large is cut on trust. Both ways are
computed in fp32 whatever the model is in: rounding in half precision would hide faults, and turns a router between
experts that score nearly alike.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.calibration.walk import Block
from secateur.errors import VerificationError
from secateur.model.linears import submodule
from secateur.model.sites import Site
from secateur.model.streamed import Call
from secateur.model.surgery import remove, update_heads, zero

TOLERANCE = 2e-3  # of the layer's largest output
FLIPS = 0.01  # of the tokens, whose experts score so nearly alike that even fp32 tells them apart by rounding


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
    outputs, chosen = [], list[Tensor | None]()
    for way in ("zero", "remove"):
        layer = copy.deepcopy(block.layer).float()
        if way == "zero":
            for site, keep in cuts:
                zero(layer, site, keep)
        else:
            remove(layer, cuts)
            update_heads(layer, family, 0)
        found, experts = _computed(block, layer)
        outputs.append(found)
        chosen.append(experts)
        del layer  # before the next copy is made
    off = _difference(outputs, chosen)
    if not off <= TOLERANCE:
        raise VerificationError(
            f"{cuts[0][0].name}: without the units that go the layer computes something else than with zeros in "
            f"their place ({off:.1e} of its largest output); nothing was saved; name other kinds of sites"
        )


def _computed(block: Block, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """What a layer makes of the first batch in fp32, (tokens, hidden), and the experts that each token was sent to,
    (tokens, experts a token), ascending; None where no router says so."""
    stream, device = block.stream, block.streamed.device
    row, chosen, handles = block.streamed.checkpoint.family.experts, list[Tensor](), []
    experts = None if row is None or not row.routed else submodule(layer, row.path)
    if experts is not None:

        def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            chosen.append((*args, *kwargs.values())[1].sort(-1).values)

        handles.append(experts.register_forward_pre_hook(look, with_kwargs=True))

    def run(rows: slice) -> Tensor:
        call = stream.calls_of(0, rows)[block.index]
        args, kwargs = pytree.tree_map(_in_fp32, (call.args, dict(call.kwargs)))
        return Call(args, kwargs, call.skipped)(layer, stream.states.to(0, device, torch.float32)[rows])

    try:
        out = torch.cat(list(stream.parts(0, device, run))).flatten(0, -2)
    finally:
        for handle in handles:
            handle.remove()
    sent = torch.cat([own.reshape(-1, own.shape[-1]) for own in chosen]) if chosen else None
    return out, sent if sent is not None and len(sent) == len(out) else None


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _difference(outputs: list[Tensor], chosen: list[Tensor | None]) -> float:
    """How far two outputs are from each other, of the largest entry; but for a few tokens that a router flipped."""
    first, second = outputs
    alike = torch.ones(len(first), dtype=torch.bool, device=first.device)
    if chosen[0] is not None and chosen[1] is not None:
        alike = (chosen[0] == chosen[1]).all(-1)
    if int((~alike).sum()) > FLIPS * len(alike):
        alike[:] = True  # so many are no accident
    return float((first - second)[alike].abs().max()) / (float(first.abs().max()) or 1.0)
