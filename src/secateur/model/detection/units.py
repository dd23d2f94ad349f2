"""The units of one kind of layer, each proved: a copy without them must compute what zeros in their place do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from secateur.model.anatomy import Anatomy, Form, Item, Owned, Segment, Size, Units, value_of, with_epsilons
from secateur.model.architectures import Family
from secateur.model.detection.copies import run, token_ids
from secateur.model.detection.influence import followed, influence, inner_readers
from secateur.model.detection.layout import Blocks, blocks_of, owned_by
from secateur.model.detection.trace import Visit, is_matrix
from secateur.model.sites import Site, sites_of
from secateur.model.surgery import remove, update_heads, zero

TOLERANCE = 2e-4  # of the largest logit; a norm's epsilon is part of it
STATED = frozenset(("in_features", "out_features", "in_channels", "out_channels", "groups", "nf", "nx", "layer_idx"))
OTHERS = ("window", "rotary", "kernel", "chunk", "pattern", "pad", "top_k", "max_", "period", "rope", "embeddings")
STREAM = ("hidden_size", "embed_dim", "d_model", "hidden_dim")


def find_units(model: Any, path: str, place: int, visit: Visit, shared: set[int]) -> tuple[list[Units], list[str]]:
    """What can be taken from the layer at `place`, proved, and what can't, a line each."""
    layer = model.get_submodule(path)[place]
    found: list[Units] = []
    failed: list[str] = []
    for name in _consumers(layer, visit, shared):
        try:
            made = _units(layer, visit, name)
        except Exception as error:  # a class without gradients, or in-place work on what is looked at
            failed.append(f"{name}: {_short(error)}")
            continue
        if isinstance(made, str):
            failed.append(f"{name}: {made}")
        elif made:
            proved, why = _first_proved(model, path, place, made)
            failed += [f"{name}: {why}"] if why else []
            found += [proved] if proved is not None else []
    return _labelled(found), failed


def _consumers(layer: nn.Module, visit: Visit, shared: set[int]) -> list[str]:
    """Matrices that write to the stream, and read something else."""
    hidden = _stream_width(visit)
    out = []
    for name, _ in visit.linears:
        module = layer.get_submodule(name)
        rows, columns = _shape(module)
        if rows == hidden and columns > 1 and id(module.weight) not in shared:
            out.append(name)
    whole = copy.deepcopy(layer).requires_grad_(False)
    last = [name for name in out if not followed(whole, caller(visit), name)]
    parents = [name.rpartition(".")[0] for name in last]
    # Inside of another's module it's a part of how that one gets its units.
    return [name for name in last if not any(p and name.rpartition(".")[0].startswith(f"{p}.") for p in parents)]


def _stream_width(visit: Visit) -> int:
    return int(stream_of(visit).shape[-1])


def stream_of(visit: Visit) -> Tensor:
    """The hidden states that a layer was called with."""
    for value in (*visit.args, *(visit.kwargs.get(key) for key in ("hidden_states", "x", "inputs"))):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise ValueError("a layer isn't called with hidden states")


def _shape(module: Any) -> tuple[int, int]:
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


def caller(visit: Visit) -> Callable[[nn.Module], Any]:
    """Calls a layer as it was called."""
    return lambda layer: layer(*visit.args, **visit.kwargs)


def _units(layer: nn.Module, visit: Visit, consumer: str) -> list[Units] | str:
    """Candidates, the likeliest first; empty if the Linear reads the stream; or what speaks against it."""
    call = caller(visit)
    whole = copy.deepcopy(layer).requires_grad_(False)
    why: str | None = None
    for readers in dict.fromkeys([inner_readers(whole, call, consumer), ()]):
        found = influence(whole, call, consumer, readers)
        blocks = blocks_of(found)
        if blocks is None:
            why = "all of its inputs hang together"
            continue
        owned = owned_by(found, blocks)
        if isinstance(owned, str):
            why = owned
            continue
        parent = _home(whole, consumer)
        prefix = f"{parent}." if parent else ""
        writes = [
            o
            for o in owned
            if o.parameter.startswith(prefix)
            and _dimensions(whole, o.parameter) > 1
            and o.axis == _output_axis(whole, o.parameter)
        ]
        if not any(_is_matrix_weight(whole, o.parameter) for o in writes):
            return []
        return list(_candidates(whole, consumer, readers, blocks, owned))
    return [] if why is None else why


def _home(layer: nn.Module, name: str) -> str:
    """The module around a matrix; one that holds nothing else (BERT's outputs) is a part of the one around it."""
    parent = name.rpartition(".")[0]
    alone = parent and sum(is_matrix(module) for module in layer.get_submodule(parent).modules()) == 1
    return parent.rpartition(".")[0] if alone else parent


def _dimensions(layer: nn.Module, name: str) -> int:
    path, _, leaf = name.rpartition(".")
    found: Tensor = getattr(layer.get_submodule(path), leaf)
    return found.dim()


def _output_axis(layer: nn.Module, name: str) -> int:
    return 1 if isinstance(layer.get_submodule(name.rpartition(".")[0]), Conv1D) else 0


def _is_matrix_weight(layer: nn.Module, name: str) -> bool:
    return name.endswith(".weight") and is_matrix(layer.get_submodule(name[: -len(".weight")]))


def _candidates(
    layer: nn.Module, consumer: str, readers: tuple[str, ...], blocks: Blocks, owned: list[Owned]
) -> Iterator[Units]:
    """With and without correcting norms, and with more or fewer of the sizes that modules state."""
    reading = [
        Owned(
            f"{name}.weight",
            0 if isinstance(layer.get_submodule(name), Conv1D) else 1,
            (Segment("head", (Item("head", blocks.width),)),),
        )
        for name in (consumer, *readers)
    ]
    norms = [i for i, o in enumerate(owned) if _is_norm(layer, o.parameter) and o.parameter.endswith("weight")]
    for corrected in dict.fromkeys([True, False]) if norms else (False,):
        own = [replace(o, rescale=corrected and i in norms) for i, o in enumerate(owned)]
        made = Units(
            kind="channel" if blocks.width == 1 else "head",
            label=consumer.rpartition(".")[0],
            consumer=consumer,
            width=blocks.width,
            owned=(*reading, *own),
            grouped=1 < blocks.groups < blocks.heads,
            shared_kv=blocks.groups == 1,
        )
        seen = []
        for without in ((), STREAM):
            sizes = _sizes(layer, made, blocks, without)
            if sizes not in seen:
                seen.append(sizes)
                yield with_epsilons(replace(made, sizes=sizes), layer)


def _is_norm(layer: nn.Module, name: str) -> bool:
    return "Norm" in type(layer.get_submodule(name.rpartition(".")[0])).__name__


def _sizes(layer: nn.Module, units: Units, blocks: Blocks, without: tuple[str, ...]) -> tuple[Size, ...]:
    """Attributes around the consumer that state a count or a width of these units."""
    heads, groups = blocks.heads, blocks.groups
    forms: list[Form] = [o.form for o in units.owned]
    forms += [segment.form for o in units.owned for segment in o.segments if segment.times != "once"]
    forms += [(1, 0, 0), (0, 1, 0)]
    parent = _home(layer, units.consumer)
    out = []
    for name, module in layer.get_submodule(parent).named_modules(prefix=parent):
        for attribute, value in vars(module).items():
            if type(value) is not int or attribute in STATED or attribute in without or attribute.startswith("_"):
                continue
            if any(word in attribute for word in OTHERS):
                continue
            form = _form_of(attribute, value, forms, heads, groups)
            if form != "no":
                out.append(Size(name, attribute, form))  # type: ignore[arg-type]
    return tuple(out)


def _form_of(attribute: str, value: int, forms: list[Form], heads: int, groups: int) -> Form | str | None:
    if 1 < groups < heads:
        if value == heads // groups and any(word in attribute for word in ("groups", "rep", "per_")):
            return None
        if value == groups and any(word in attribute for word in ("key_value", "kv", "key_heads", "k_heads")):
            return (0, 1, 0)
    if value == heads:
        return (1, 0, 0)
    if 1 < groups < heads and value == groups:
        return (0, 1, 0)
    if value <= 1:
        return "no"
    fitting = [form for form in forms if value_of(form, heads, groups) == value]
    return fitting[0] if fitting else "no"


def _first_proved(model: Any, path: str, place: int, candidates: list[Units]) -> tuple[Units | None, str]:
    """The candidate of which most kinds of sites are right, and what is wrong with the others."""
    best: tuple[Units | None, str] = None, ""
    for units in candidates:
        family = Family("", (), layers=path, anatomies=(Anatomy((), (units,)),), kinds=(0,))
        found = verdicts(model, path, place, family)
        proved = tuple(kind for kind, why in found.items() if why is None)
        wrong = "; ".join(f"{kind}: {why}" for kind, why in found.items() if why is not None)
        if best[0] is None and not best[1]:
            best = None, wrong
        if proved and (best[0] is None or len(proved) > len(best[0].kinds)):
            best = replace(units, kinds=proved), wrong
        if not wrong and proved:
            break
    return best


@torch.no_grad()
def verdicts(model: Any, path: str, place: int, family: Family) -> dict[str, str | None]:
    """Kind of site -> what is wrong with it; None if units that are taken out compute what zeros do."""
    layers = model.get_submodule(path)
    original, ids = layers[place], token_ids(model, seed=3)
    whole = run(model, ids)
    found: dict[str, str | None] = {}
    for site in sites_of(_copied(original), family, place, 0):
        if site.kind != "layer" and site.units > 1:
            try:
                found[site.kind] = _wrong(model, layers, place, family, site, ids, whole)
            finally:
                layers[place] = original
    return found


def _wrong(
    model: Any, layers: nn.ModuleList, place: int, family: Family, site: Site, ids: Tensor, whole: Tensor
) -> str | None:
    original, keep, found = layers[place], _some(site), []
    for way in ("zeroed", "taken out"):
        layer = _copied(original)
        zero(layer, site, keep) if way == "zeroed" else remove(layer, [(site, keep)])
        update_heads(layer, family, 0)
        layers[place] = layer
        try:
            found.append(run(model, ids))
        except Exception as error:  # whatever a class of the wrong shapes raises
            return f"{way}, it doesn't run ({_short(error)})"
    scale = float(whole.abs().max())
    if not float((found[0] - found[1]).abs().max()) <= TOLERANCE * scale:
        return "taken out it computes something else than zeros"
    return None if float((found[0] - whole).abs().max()) > 1e-6 * scale else "zeros change nothing"


def _copied(layer: Any) -> nn.Module:
    new = copy.deepcopy(layer)
    new.secateur_kind = 0
    return new


def _some(site: Site) -> Tensor:
    """About half of the units, not the first ones, equally many in each group."""
    size = site.units // site.groups
    noise = torch.rand(site.groups, size, generator=torch.Generator().manual_seed(site.units))
    least = max(1, size // 2)
    return (noise.argsort(dim=1).argsort(dim=1) < least).flatten()


def _labelled(found: list[Units]) -> list[Units]:
    """The largest of a kind in a layer needs no label."""
    out = []
    for units in found:
        rivals = [u for u in found if u.kind == units.kind]
        main = max(rivals, key=lambda u: (u.label != "", -found.index(u)) if u.kind == "head" else (_weight(u), 0))
        out.append(replace(units, label="" if units is main else units.label))
    return out


def _weight(units: Units) -> int:
    return sum(len(o.segments) for o in units.owned)


def _short(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line[:120]
