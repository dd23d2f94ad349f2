"""Ranks of the latents of multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434): what a narrow
matrix makes of the stream, a norm levels, and another matrix unfolds into heads.

They are found as channels are, by what reaches the inputs of the matrix that unfolds them; the norm over them is
corrected, and the proof is the same.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.model.anatomy import Units
from secateur.model.detection.candidates import candidates
from secateur.model.detection.influence import influence
from secateur.model.detection.layout import Blocks, blocks_of, owned_by
from secateur.model.detection.trace import Visit
from secateur.model.detection.units import caller, first_proved, shape_of, stream_width


def find_latents(
    model: Any, path: str, place: int, visit: Visit, found: list[Units]
) -> tuple[list[Units], list[str]]:
    """Of the layer at `place`, proved, each labelled by the matrix that reads it; and what can't be taken, in lines.

    Args:
        found: its other units. Where no heads are offered there are no latents either.
    """
    layer = model.get_submodule(path)[place]
    unfolded = {owned.parameter for units in found if units.kind == "head" for owned in units.owned}
    consumers = {units.consumer for units in found}
    out, failed = list[Units](), list[str]()
    for name, number in visit.linears:
        columns = shape_of(layer.get_submodule(name))[1]
        taken = name in consumers or f"{name}.weight" not in unfolded
        if taken or columns in (1, stream_width(visit)):
            continue
        beside = tuple(other for other, own in visit.linears if own == number and other != name)
        units, why = first_proved(model, path, place, _candidates(layer, visit, name, beside))
        out += [] if units is None else [units]
        failed += [f"{name}: {why}"] if units is None and why else []
    return out, failed


def _candidates(layer: nn.Module, visit: Visit, name: str, beside: tuple[str, ...]) -> list[Units]:
    """What the units that a matrix reads may be; none if no norm over all of them is in front of it.

    Args:
        beside: other matrices that read the same.
    """
    whole = copy.deepcopy(layer).requires_grad_(False)
    try:
        found = influence(whole, caller(visit), name, beside)
    except (RuntimeError, ValueError):  # a class without gradients
        return []
    blocks, columns = blocks_of(found), shape_of(whole.get_submodule(name))[1]
    if blocks != Blocks(1, columns, columns):
        return []
    owned = owned_by(found, blocks)
    made = [] if isinstance(owned, str) else candidates(whole, name, beside, blocks, owned)
    return [_latent(units, name) for units in made if any(owned.rescale for owned in units.owned)]


def _latent(units: Units, name: str) -> Units:
    owned = tuple(replace(own, epsilon=None) for own in units.owned)
    return replace(units, kind="latent", label=name, kinds=("latent",), owned=owned)
