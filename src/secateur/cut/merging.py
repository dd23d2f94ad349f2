"""Experts that go, absorbed by those that stay (compare M-SMoE, https://arxiv.org/abs/2310.01334, and HC-SMoE,
https://arxiv.org/abs/2410.08589).

Each expert that goes is given to the one that stays whose output is most like its own, by the cosine over all
calibration tokens. Its hidden units are put into the order in which they are most like the other's. Then both become
one: the mean of their weights, by the tokens that were routed to each. The router keeps the row of the one that
stays.

A mean of weights need not compute a mean of functions, and the tokens of an expert that went may be sent elsewhere.
So no merge is made on trust. For each expert that stays, the candidates are: as it is, with the most alike of those
given to it, with the two most alike, and so on. One pass gathers what each of them would change in the output of the
layer, and their products: the error of any choice follows from these. What is chosen never has a larger one, on the
calibration tokens, than plain removal, which is the choice of no merge at all.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.calibration.experts import written_by
from secateur.calibration.routing import routes_of
from secateur.calibration.walk import Block
from secateur.cut.experts import remove_experts
from secateur.errors import InputError
from secateur.model.architectures import ExpertModules
from secateur.model.sites import Site
from secateur.numerics.linalg import wide_dtype
from secateur.numerics.merging import Expert, aligned, likeness, merged, worthwhile
from secateur.numerics.support import support_of
from secateur.system import distributed

NUMBERS = 2**25  # outputs of several experts for some tokens, at once


@dataclass(frozen=True)
class Merge:
    """What became of an expert that went.

    Args:
        unit: its number in the layer as it was.
        into: the expert that stays and is most like it.
        likeness: cosine of their outputs over the calibration tokens.
        taken: whether it was merged into that one; otherwise it was only removed, as no merge lowered the error.
    """

    unit: int
    into: int
    likeness: float
    taken: bool


class Merged(NamedTuple):
    """Args:
    error_removed: E|y - y'|² / E|y|² of what all experts of the layer write, those that go being removed.
    error: the same after merging, never larger.
    """

    merges: tuple[Merge, ...]
    error_removed: float
    error: float


class _Candidate(NamedTuple):
    """Expert `place` of those that stay, once it has absorbed `units`."""

    place: int
    units: tuple[int, ...]
    expert: Expert


@torch.no_grad()
def remove_and_merge(block: Block, site: Site, keep: Tensor) -> Merged:
    """Takes experts out of a block, and merges them into others where that lowers the error of the layer's output.

    Args:
        keep: bool (experts,), True = stays; not all of them do.
    """
    e = block.streamed.checkpoint.family.experts
    assert e is not None
    if e.form != "gated" or not e.routed:
        kind = block.streamed.checkpoint.config.model_type
        raise InputError(f"merge_experts: the experts of {kind} models are of another form; leave it out")
    path = e.path.rpartition(".")[0]
    whole = copy.deepcopy(block.layer.get_submodule(path))
    alike, tokens = _compare(block, whole, path, e)
    stays, goes = (part.nonzero().flatten().tolist() for part in (keep, ~keep))
    nearest = [stays[int(alike[unit, stays].argmax())] for unit in goes]
    found = [Merge(u, k, float(alike[u, k]), False) for u, k in zip(goes, nearest, strict=True)]
    candidates = _candidates(block, _experts(whole, e), stays, found, tokens, e)
    remove_experts(block, site, keep)
    products, gains, sizes = _weigh(block, whole, path, e, candidates)
    made = worthwhile(products, gains, [c.place for c in candidates], float(sizes[0])).to(gains)
    chosen = [candidate for candidate, yes in zip(candidates, made.tolist(), strict=True) if yes]
    _put(block, e, chosen)
    left = sizes[0] - 2 * gains @ made + made @ products @ made
    removed, error = (float(x / sizes[1]) if float(sizes[1]) else 0.0 for x in (sizes[0], left.clamp_min(0)))
    taken = {unit for candidate in chosen for unit in candidate.units}
    merges = tuple(Merge(m.unit, m.into, m.likeness, m.unit in taken) for m in found)
    return Merged(merges, removed, min(error, removed))


def _experts(mixture: nn.Module, e: ExpertModules) -> nn.Module:
    return mixture.get_submodule(e.path.rpartition(".")[2])


def _matrices(experts: nn.Module, e: ExpertModules, unit: int) -> Expert:
    return experts.get_parameter(e.up).data[unit], experts.get_parameter(e.down).data[unit]


def _compare(block: Block, mixture: nn.Module, path: str, e: ExpertModules) -> tuple[Tensor, Tensor]:
    """How alike the outputs of any two experts are, (experts, experts), and the tokens routed to each, (experts,)."""
    experts = _experts(mixture, e)
    count, hidden = experts.get_parameter(e.down).shape[:2]
    device, wide = block.streamed.device, wide_dtype(block.streamed.device)
    products = torch.zeros(count, count, dtype=wide, device=device)
    tokens = torch.zeros(count, dtype=wide, device=device)
    for states in block.entering(path):
        chosen, _ = routes_of(mixture, experts, states)
        tokens += chosen.flatten().bincount(minlength=count)
        for x in states.flatten(0, -2).split(max(1, NUMBERS // (count * hidden))):
            written = [written_by(experts, *_matrices(experts, e, unit), x).float() for unit in range(count)]
            flat = torch.stack(written).flatten(1)
            products += flat @ flat.T
    distributed.all_reduce([products, tokens])
    return likeness(products), tokens


def _candidates(
    block: Block, experts: nn.Module, stays: list[int], found: list[Merge], tokens: Tensor, e: ExpertModules
) -> list[_Candidate]:
    """Each expert that stays with the one, two, ... most alike of those nearest to it, as they'd be saved."""
    out = []
    for place, unit in enumerate(stays):
        own = sorted((m for m in found if m.into == unit), key=lambda m: -m.likeness)
        parts, units = [_matrices(experts, e, unit)], [unit]
        for merge in own:
            parts.append(aligned(_matrices(experts, e, merge.unit), to=parts[0]))
            units.append(merge.unit)
            together = _within(merged(parts, tokens[units].tolist()), parts[0])
            out.append(_Candidate(place, tuple(units[1:]), _as_saved(block, together, e)))
    return out


def _within(expert: Expert, own: Expert) -> Expert:
    """An expert that was pruned keeps its zeros."""
    up, down = (
        part if (mask := support_of(before)) is None else part.where(mask, 0.0)
        for part, before in zip(expert, own, strict=True)
    )
    return up, down


def _as_saved(block: Block, expert: Expert, e: ExpertModules) -> Expert:
    """What rounding takes away was never gained."""
    stored = [block.streamed.checkpoint.stored_dtype(block.index, f"{e.path}.{part}") for part in (e.up, e.down)]
    up, down = (part.to(dtype).to(part.dtype) for part, dtype in zip(expert, stored, strict=True))
    return up, down


def _weigh(
    block: Block, whole: nn.Module, path: str, e: ExpertModules, candidates: list[_Candidate]
) -> tuple[Tensor, Tensor, Tensor]:
    """What candidates would change in the output of the layer, whose experts have been removed.

    Args:
        whole: the mixture before that, whose output is wanted.

    Returns: products of these changes with each other, (candidates, candidates), and with what is missing of the
        output, (candidates,); and the squares (2,) of what is missing and of the output.
    """
    mixture = block.layer.get_submodule(path)
    experts: Any = _experts(mixture, e)
    device, wide, count = block.streamed.device, wide_dtype(block.streamed.device), len(candidates)
    products = torch.zeros(count, count, dtype=wide, device=device)
    gains, sizes = torch.zeros(count, dtype=wide, device=device), torch.zeros(2, dtype=wide, device=device)
    for states in block.entering(path):
        wanted = whole(states).flatten(0, -2).float()
        missing = wanted - mixture(states).flatten(0, -2).float()
        sizes += torch.stack([part.square().sum(dtype=wide) for part in (missing, wanted)])
        parts = (states.flatten(0, -2), *routes_of(mixture, experts, states), missing)
        some = max(1, NUMBERS // (count * missing.shape[1]))
        for x, chosen, gates, lacks in zip(*(part.split(some) for part in parts), strict=True):
            changes = torch.stack([_change(experts, e, c, x, chosen, gates) for c in candidates]).flatten(1)
            products += changes @ changes.T
            gains += changes @ lacks.flatten()
    distributed.all_reduce([products, gains, sizes])
    return products, gains, sizes


def _change(
    experts: Any, e: ExpertModules, candidate: _Candidate, x: Tensor, chosen: Tensor, gates: Tensor
) -> Tensor:
    """(tokens, hidden) fp32: what the output would be more with a candidate in its expert's place."""
    token, rank = (chosen == candidate.place).nonzero(as_tuple=True)
    own = _matrices(experts, e, candidate.place)
    new, old = (written_by(experts, *expert, x[token]).float() for expert in (candidate.expert, own))
    change = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    change[token] = gates[token, rank, None].float() * (new - old)
    return change


def _put(block: Block, e: ExpertModules, chosen: list[_Candidate]) -> None:
    """Puts merged experts in their places; also into a copy of the untouched layer, for what is cut inside them."""
    _write(block.layer, e, [(c.place, c.expert) for c in chosen])
    if block.dense is not None and chosen:
        assert block.experts is not None
        block.reference_layer = _sharing(block.dense[0], e)
        _write(block.reference_layer, e, [(block.experts[c.place], c.expert) for c in chosen])


def _write(layer: nn.Module, e: ExpertModules, merges: list[tuple[int, Expert]]) -> None:
    for unit, expert in merges:
        for own, part in zip(_matrices(layer.get_submodule(e.path), e, unit), expert, strict=True):
            own.copy_(part)


def _sharing(layer: nn.Module, e: ExpertModules) -> nn.Module:
    """A copy of a layer with experts of its own; all other parameters are the layer's."""
    shared = {id(p): p for name, p in layer.named_parameters() if not name.startswith(f"{e.path}.")}
    return copy.deepcopy(layer, shared)
