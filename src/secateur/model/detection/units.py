"""The units of one kind of layer, each proved: a copy without them must compute what zeros in their place do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from secateur.model.anatomy import Anatomy, Owned, Units
from secateur.model.architectures import Family
from secateur.model.detection.candidates import candidates, home
from secateur.model.detection.copies import run, token_ids
from secateur.model.detection.influence import Influence, followed, influence, inner_readers
from secateur.model.detection.layout import Blocks, blocks_of, owned_by
from secateur.model.detection.trace import Visit, is_matrix, watch_layers
from secateur.model.site_kinds import HEADS
from secateur.model.sites import Site, sites_of
from secateur.model.surgery import remove, update_heads, zero

TOLERANCE = 2e-4  # of the largest logit; a norm's epsilon is part of it
BRIEF = 12  # tokens of one text, of which what reaches a column is found: some classes loop over them
STREAMS = ("hidden_states", "x", "inputs")  # what layers call the hidden states


def find_units(model: Any, path: str, place: int, visit: Visit, shared: set[int]) -> tuple[list[Units], list[str]]:
    """What can be taken from the layer at `place`, proved, and what can't, a line each."""
    layer = model.get_submodule(path)[place]
    found: list[Units] = []
    failed: list[str] = []
    brief = watch_layers(model, path, token_ids(model)[:1, :BRIEF])[place]
    for name in _consumers(layer, visit, shared):
        units, why = (None, "") if brief is None else _of_consumer(model, path, place, name, brief, visit)
        if units is None or why:  # a ReLU may be off at so few tokens
            units, why = _of_consumer(model, path, place, name, visit, visit)
        failed += [f"{name}: {why}"] if why else []
        found += [units] if units is not None else []
    return _labelled(found), failed


def _of_consumer(
    model: Any, path: str, place: int, name: str, looked_at: Visit, visit: Visit
) -> tuple[Units | None, str]:
    """The units that a matrix reads, proved, and what can't be taken of them or why nothing can."""
    layer = model.get_submodule(path)[place]
    try:
        made = _units(layer, looked_at, name)
    except Exception as error:  # a class without gradients, or in-place work on what is looked at
        return None, _short(error)
    if isinstance(made, str):
        return None, made
    if not made:
        return None, ""
    proved, why = first_proved(model, path, place, made)
    if proved is None and (handed := _by_head(made, layer, visit)):
        again, _ = first_proved(model, path, place, handed)
        proved, why = (proved, why) if again is None else (again, "")
    return proved, why


def _consumers(layer: nn.Module, visit: Visit, shared: set[int]) -> list[str]:
    """Matrices that write to the stream, and read something else."""
    hidden = stream_width(visit)
    out = []
    for name, _ in visit.linears:
        module = layer.get_submodule(name)
        rows, columns = shape_of(module)
        if rows == hidden and columns > 1 and id(module.weight) not in shared:
            out.append(name)
    whole = copy.deepcopy(layer).requires_grad_(False)
    last = [name for name in out if not followed(whole, caller(visit), name)]
    parents = [name.rpartition(".")[0] for name in last]
    # Inside of another's module it's a part of how that one gets its units.
    return [name for name in last if not any(p and name.rpartition(".")[0].startswith(f"{p}.") for p in parents)]


def stream_width(visit: Visit) -> int:
    return int(stream_of(visit).shape[-1])


def stream_of(visit: Visit) -> Tensor:
    """The hidden states that a layer was called with."""
    for value in (*visit.args, *(visit.kwargs.get(key) for key in STREAMS)):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise ValueError("a layer isn't called with hidden states")


def shape_of(module: Any) -> tuple[int, int]:
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
        laid_out, said = _laid_out(found, blocks)
        why = why or said
        if laid_out and not _writes(whole, consumer, laid_out[0][1]):
            return []
        if laid_out:
            return [made for laid, own in laid_out for made in candidates(whole, consumer, readers, laid, own)]
    return [] if why is None else why


def _writes(layer: nn.Module, consumer: str, owned: list[Owned]) -> bool:
    """Whether a matrix beside the consumer writes what it reads."""
    parent = home(layer, consumer)
    prefix = f"{parent}." if parent else ""
    return any(
        o.parameter.startswith(prefix)
        and _dimensions(layer, o.parameter) > 1
        and o.axis == _output_axis(layer, o.parameter)
        and _is_matrix_weight(layer, o.parameter)
        for o in owned
    )


def _laid_out(found: Influence, blocks: Blocks) -> tuple[list[tuple[Blocks, list[Owned]]], str | None]:
    """How the axes may be laid out, and what speaks against the likeliest way. Heads that share nothing may still lie
    in runs (CodeGen), or read keys and values in runs that other layers have written (Gemma 3n)."""
    alone = blocks.width > 1 and blocks.groups == blocks.heads
    runs = [n for n in range(2, blocks.heads // 2 + 1) if alone and blocks.heads % n == 0]
    tried = [(laid, owned_by(found, laid)) for laid in (blocks, *(replace(blocks, groups=n, runs=n) for n in runs))]
    said = tried[0][1]
    return [(laid, own) for laid, own in tried if not isinstance(own, str)], said if isinstance(said, str) else None


def _by_head(made: list[Units], layer: nn.Module, visit: Visit) -> list[Units]:
    """The same with something that the model hands to the layer for each of the heads, such as slopes."""
    heads = made[0].counts(layer)[0] if made[0].kind == "head" else 0
    able = [
        (name, axis)
        for name, value in visit.kwargs.items()
        if heads and name not in STREAMS and isinstance(value, Tensor) and value.is_floating_point()
        for axis, length in enumerate(value.shape)
        if length % heads == 0
    ]
    return [replace(units, by_head=(argument,)) for argument in able for units in made if not units.runs]


def _dimensions(layer: nn.Module, name: str) -> int:
    path, _, leaf = name.rpartition(".")
    found: Tensor = getattr(layer.get_submodule(path), leaf)
    return found.dim()


def _output_axis(layer: nn.Module, name: str) -> int:
    return 1 if isinstance(layer.get_submodule(name.rpartition(".")[0]), Conv1D) else 0


def _is_matrix_weight(layer: nn.Module, name: str) -> bool:
    return name.endswith(".weight") and is_matrix(layer.get_submodule(name[: -len(".weight")]))


def first_proved(model: Any, path: str, place: int, candidates: list[Units]) -> tuple[Units | None, str]:
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

    def computed(layer: nn.Module) -> Tensor:
        layers[place] = layer
        try:
            return run(model, ids)
        finally:
            layers[place] = original

    whole, found = computed(original), dict[str, str | None]()
    for site in sites_of(_copied(original, family), family, place, 0):
        if site.kind != "layer" and site.units > 1:
            masks = (_some(site), _last(site)) if site.kind in HEADS and site.groups == 1 else (_some(site),)
            wrong = (_wrong(original, family, site, keep, computed, whole) for keep in masks)
            found[site.kind] = next((why for why in wrong if why is not None), None)
    return found


def _wrong(
    original: nn.Module,
    family: Family,
    site: Site,
    keep: Tensor,
    computed: Callable[[nn.Module], Tensor],
    whole: Tensor,
) -> str | None:
    found = []
    for way in ("zeroed", "taken out"):
        layer = _copied(original, family)
        zero(layer, site, keep) if way == "zeroed" else remove(layer, [(site, keep)])
        update_heads(layer, family, 0)
        try:
            found.append(computed(layer))
        except Exception as error:  # whatever a class of the wrong shapes raises
            return f"{way}, it doesn't run ({_short(error)})"
    scale = float(whole.abs().max())
    if not float((found[0] - found[1]).abs().max()) <= TOLERANCE * scale:
        return "taken out it computes something else than zeros"
    return None if float((found[0] - whole).abs().max()) > 1e-6 * scale else "zeros change nothing"


def _copied(layer: Any, family: Family) -> nn.Module:
    new = copy.deepcopy(layer)
    family.mark_layer(new, 0)
    return new


def _some(site: Site) -> Tensor:
    """About half of the units, not the first ones, equally many in each group."""
    size = site.units // site.groups
    noise = torch.rand(site.groups, size, generator=torch.Generator().manual_seed(site.units))
    least = max(1, size // 2)
    return (noise.argsort(dim=1).argsort(dim=1) < least).flatten()


def _last(site: Site) -> Tensor:
    """The last half: heads that another layer's keys and values group would then be of one group."""
    return torch.arange(site.units) >= site.units // 2


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
