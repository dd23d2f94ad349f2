"""Experts that are taken out of a small copy must leave what a router leaves that never chooses them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.anatomy import Anatomy, tensor_of
from secateur.model.architectures import ExpertModules, Family
from secateur.model.detection.copies import run, token_ids
from secateur.model.sites import sites_of
from secateur.model.surgery import remove, update_heads


@torch.no_grad()
def wrong_with(model: Any, path: str, place: int, row: ExpertModules) -> str | None:
    """What is wrong with experts that are taken out; None if that equals a router that never chooses them."""
    layers = model.get_submodule(path)
    original, ids = layers[place], token_ids(model, seed=3)
    whole = run(model, ids)
    family = Family("", (), layers=path, anatomies=(Anatomy(),), kinds=(0,), experts=row)
    found = []
    for way in ("never chosen", "taken out"):
        layer = copy.deepcopy(original)
        layer.secateur_kind = 0
        (site,) = (s for s in sites_of(layer, family, place, 0) if s.kind == "expert")
        keep = torch.arange(site.units) % 3 != 1
        if int(keep.sum()) < site.least:
            return None  # a copy of few experts
        if way == "taken out":
            remove(layer, [(site, keep)])
            update_heads(layer, family, 0)
        layers[place] = layer
        try:
            with _never(layer, row, ~keep) if way == "never chosen" else nullcontext():
                found.append(run(model, ids))
        except Exception as error:  # whatever a class of the wrong shapes raises
            return f"{way}, it doesn't run ({(str(error).strip().splitlines() or [''])[0][:120]})"
        finally:
            layers[place] = original
    if torch.equal(found[0], whole):
        return "no router is known that would choose others"
    near = float((found[0] - found[1]).abs().max()) <= 2e-4 * float(found[0].abs().max())
    return None if near else "taken out it computes something else than a router that never chooses them"


@contextmanager
def _never(layer: nn.Module, row: ExpertModules, gone: Tensor) -> Iterator[None]:
    """The logits of the router are as good as -infinity for some experts, and so is what is added to them."""
    weight, linear = layer.get_parameter(f"{row.router}.weight"), nn.functional.linear
    gone = nn.functional.pad(gone, (0, len(weight) - len(gone)))
    for name, axis in row.also:
        tensor_of(layer, name).movedim(axis, 0)[gone] = -1e9

    def masked(x: Tensor, own: Tensor, bias: Tensor | None = None) -> Tensor:
        out = linear(x, own, bias)
        return out.masked_fill(gone, -1e9) if own.data_ptr() == weight.data_ptr() else out

    nn.functional.linear = masked  # type: ignore[assignment]  # of the router too, whatever module it is
    try:
        yield
    finally:
        nn.functional.linear = linear
