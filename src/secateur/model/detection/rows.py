"""A row of the table for an architecture that the table doesn't list, found and proved on a small copy of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import UnsupportedModelError
from secateur.model.anatomy import Anatomy, Units, with_epsilons
from secateur.model.architectures import ExpertModules, Family
from secateur.model.classes import text_config
from secateur.model.detection.building import without_weights
from secateur.model.detection.chunks import short_chunks
from secateur.model.detection.copies import small_copy
from secateur.model.detection.experts import find_experts, least_of
from secateur.model.detection.latents import find_latents
from secateur.model.detection.loading import stock_kinds
from secateur.model.detection.trace import Trace, Visit, kind_of, layer_lists, shared_parameters, trace
from secateur.model.detection.transfer import transferred
from secateur.model.detection.units import find_units, stream_of
from secateur.model.heads import predicts_next
from secateur.model.linears import submodule

Kind = tuple[tuple[str, str], ...]


@dataclass
class _Learned:
    """What a small copy has shown of one kind of layer."""

    layer: nn.Module
    visit: Visit
    units: list[Units]
    linears: tuple[tuple[str, str], ...] = ()


def propose(config: Any) -> Family:
    """The row of an architecture.

    Args:
        config: of the model, stock.

    Raises:
        UnsupportedModelError: nothing can be cut, with the reason.
    """
    try:
        return _propose(config)
    except ValueError as error:
        raise UnsupportedModelError(
            f"architecture '{config.model_type}' isn't in the table, and detection found no way ({error}); "
            "a row of its own: docs/adding-an-architecture.md"
        ) from None


def _propose(config: Any) -> Family:
    whole = without_weights(config)
    small = small_copy(config, _depth(whole))
    with short_chunks(small):
        return _row(config, whole, small)


def _row(config: Any, whole: Any, small: Any) -> Family:
    """The row that a small copy shows, in the sizes of the model."""
    seen = trace(small)
    _check_chain(seen)
    layers, copies = (list(model.get_submodule(seen.layers).children()) for model in (whole, small))
    text, own = text_config(config), text_config(small.config)
    shared, failed = shared_parameters(copies), list[str]()
    sharing = _sharing(seen, text)
    learned: dict[Kind, _Learned] = {}
    routed: list[ExpertModules] = []
    for place, layer in enumerate(copies):
        visit, kind = seen.visits[place], kind_of(layer)
        if visit is None or kind in learned:
            continue
        units, why = find_units(small, seen.layers, place, visit, shared)
        latents, unproved = find_latents(small, seen.layers, place, visit, units)
        units, why = [*units, *latents], [*why, *unproved]
        if sharing and any("kv_group" in u.kinds for u in units if u.kind == "head"):
            units, why = [own for u in units for own in _query_heads(u)], [*why, sharing]
        found = find_experts(small, seen.layers, place, own)
        failed += [*why, *([found] if isinstance(found, str) else [])]
        routed += [found] if isinstance(found, ExpertModules) else []
        learned[kind] = _Learned(layer, visit, units)
    # Where kinds of layers have other routers, the one with most beside it: what lacks that keeps all of its experts.
    experts = max(routed, key=lambda row: len(row.also), default=None)
    for one in learned.values():
        one.linears = _linears(one.layer, one.visit, experts, shared)
    kinds, anatomies = [], list[Anatomy]()
    for layer in layers:
        made = _anatomy(learned.get(kind_of(layer)), layer, own, text, failed)
        if made not in anatomies:
            anatomies.append(made)
        kinds.append(anatomies.index(made))
    small_family = _of_copy(seen, copies, learned, experts)
    if not any(anatomy.linears for anatomy in anatomies):
        raise ValueError("its layers have no matrices that text goes through")
    return Family(
        type(whole).__name__,
        (config.model_type,),
        layers=seen.layers,
        experts=experts and _named(experts, text, layers),
        causal=predicts_next(config),
        plain_residual=False,
        anatomies=tuple(anatomies),
        kinds=tuple(kinds),
        returns=seen.returns,
        failed=tuple(dict.fromkeys(failed)),
        stock=stock_kinds(small, small_family),
    )


def _of_copy(seen: Trace, copies: list[nn.Module], learned: dict[Kind, _Learned], experts: Any) -> Family:
    """The row of the small copy itself."""
    kinds = list(learned)
    found = [Anatomy(learned[kind].linears, tuple(learned[kind].units)) for kind in kinds]
    places = [kinds.index(kind) if (kind := kind_of(layer)) in learned else len(kinds) for layer in copies]
    return Family("", (), layers=seen.layers, experts=experts, anatomies=(*found, Anatomy()), kinds=tuple(places))


def _depth(whole: Any) -> int:
    """How many of the first layers show every kind that there is."""
    count = int(text_config(whole.config).num_hidden_layers)
    lists = [list(whole.get_submodule(path)) for path in layer_lists(whole)]
    best = max(lists, key=lambda own: sum(p.numel() for layer in own for p in layer.parameters()), default=[])
    kinds = [kind_of(layer) for layer in best]
    first = [kinds.index(kind) for kind in set(kinds)]
    return max(2, min(count, max(first, default=0) + 1))


def _sharing(seen: Trace, text: Any) -> str:
    """What layers hand each other beside the hidden states, in words; keys of one are then read by others too."""
    handed = [{id(v) for v in visit.kwargs.values() if isinstance(v, dict) and v} for visit in seen.visits if visit]
    if getattr(text, "num_kv_shared_layers", None) or (len(handed) > 1 and set.intersection(*handed)):
        return "kv_group: later layers read the keys and values of earlier ones"
    return ""


def _query_heads(units: Units) -> list[Units]:
    """What may go where keys and values must stay."""
    if units.kind != "head":
        return [units]
    return [replace(units, kinds=("query_head",))] if "query_head" in units.kinds else []


def _check_chain(seen: Trace) -> None:
    """Layers must hand on what they return, or a walk from one to the next computes something else."""
    if seen.returns < 0:
        raise ValueError("its layers don't all return the same kind of thing")
    called = [visit for visit in seen.visits if visit is not None]
    for before, after in itertools.pairwise(called):
        out = before.output[0] if isinstance(before.output, tuple | list) else before.output
        if not isinstance(out, Tensor) or not torch.equal(out, stream_of(after)):
            raise ValueError("something happens between its layers")


def _linears(
    layer: nn.Module, visit: Visit, experts: ExpertModules | None, shared: set[int]
) -> tuple[tuple[str, str], ...]:
    """Matrices that may be pruned, each with the first that reads the same; no routers, nothing that layers share."""
    first: dict[int, str] = {}
    out = []
    for name, number in visit.linears:
        weight = layer.get_parameter(f"{name}.weight")
        if id(weight) in shared or min(weight.shape) < 2 or name == getattr(experts, "router", None):
            continue
        out.append((name, first.setdefault(number, name)))
    if experts is not None and experts.form != "flat" and _same_form(layer, experts):
        out += [(f"{experts.path}.{part}",) * 2 for part in (experts.up, experts.down)]
    return tuple(out)


def _same_form(layer: nn.Module, experts: ExpertModules) -> bool:
    """Whether a layer has such experts, whatever routes tokens to them."""
    known = getattr(submodule(layer, experts.path), "secateur_experts", None)
    form = (experts.up, experts.down, experts.form)
    return isinstance(known, ExpertModules) and (known.up, known.down, known.form) == form


def _anatomy(learned: _Learned | None, layer: nn.Module, own: Any, text: Any, failed: list[str]) -> Anatomy:
    if learned is None:
        return Anatomy()
    units = []
    for small in learned.units:
        made = transferred(small, learned.layer, own, layer, text)
        if isinstance(made, str):
            failed.append(f"{small.consumer}: {made}")
        else:
            units.append(with_epsilons(made, layer))
    return Anatomy(learned.linears, tuple(units))


def _named(experts: ExpertModules, text: Any, layers: list[nn.Module]) -> ExpertModules:
    """The row with how many experts a token of the model itself takes, and how wide they are there."""
    layer = next(layer for layer in layers if submodule(layer, experts.path) is not None)
    rows = 0
    if experts.form == "flat":
        length = len(layer.get_parameter(f"{experts.path}.{experts.down}"))
        rows = length // len(layer.get_parameter(f"{experts.router}.weight"))
    return replace(experts, least=least_of(layer, experts.router, text), rows=rows)
