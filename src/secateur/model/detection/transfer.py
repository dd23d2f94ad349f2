"""What was proved on a small copy, in the sizes of the model itself.

The layout of an axis is the same, but the widths are others. Those of the unit that a Linear reads are known from the
counts that modules and configuration state; the rest follows from the axes' lengths, since what was equal in a copy
whose sizes are set apart means the same. What doesn't add up isn't offered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from secateur.model.anatomy import Form, Item, Owned, Segment, Size, Units, length_of, value_of

# What configurations call the heads of attention, of state-space layers and of linear attention, and their groups.
# fmt: off
HEADS: tuple[str, ...] = (
    "num_attention_heads", "num_heads", "n_heads", "n_head", "mamba_n_heads", "n_mamba_heads", "mamba_num_heads",
    "linear_num_value_heads", "linear_num_heads",
)
GROUPS: tuple[str, ...] = (
    "num_key_value_heads", "num_kv_heads", "linear_num_key_heads", "mamba_n_groups", "mamba_ngroups", "n_groups",
)
# fmt: on


def transferred(units: Units, small: nn.Module, small_config: Any, layer: nn.Module, config: Any) -> Units | str:
    """Units of a small layer as those of the layer itself; or why that's not possible.

    Args:
        small_config, config: of the language models that the layers are of.
    """
    # As wide and yet of other heads: DistilBERT's width goes by a name that copies keep.
    if all(length_of(small, o) == length_of(layer, o) for o in units.owned) and all(
        _stated(small, size) == _stated(layer, size) for size in units.sizes
    ):
        return units
    heads_before, groups_before = units.counts(small)
    inputs = length_of(layer, units.owned[0])
    if units.kind != "head":
        counts: tuple[int, int] | None = (inputs, inputs)
    else:
        counts = _counts(units, small_config, layer, config, heads_before, groups_before)
    if counts is None:
        return "the number of its heads isn't stated"
    heads, groups = counts
    if heads < 1 or groups < 1 or inputs % heads or heads % groups:
        return f"{inputs} inputs are no {heads} heads of {groups} groups"
    known = {1: 1, units.width: inputs // heads}
    if not _solve(units, layer, heads, groups, known):
        return "the widths of its parts don't follow from its shapes"
    owned = tuple(replace(o, segments=tuple(_scaled(s, known) for s in o.segments)) for o in units.owned)
    made = replace(units, width=inputs // heads, owned=owned, runs=groups if units.runs else 0)
    for o in owned:
        if value_of(o.form, heads, groups) != length_of(layer, o):
            return f"{o.parameter} has another layout than in a small copy"
    return replace(made, sizes=_sizes(units, made, layer, heads, groups))


def _stated(layer: nn.Module, size: Size) -> Any:
    return getattr(layer.get_submodule(size.module), size.name, None)


def _counts(
    units: Units, small_config: Any, layer: nn.Module, config: Any, heads_before: int, groups_before: int
) -> tuple[int, int] | None:
    """Heads and groups of the layer, as its modules or its configuration state them."""
    stated: dict[Form | None, int] = {}
    for size in units.sizes:
        if size.form in ((1, 0, 0), (0, 1, 0), None):
            stated.setdefault(size.form, getattr(layer.get_submodule(size.module), size.name))
    heads = stated.get((1, 0, 0)) or _from_config(HEADS, heads_before, small_config, config)
    groups = stated.get((0, 1, 0))
    if groups is None and heads and stated.get(None):
        groups = heads // stated[None]
    groups = groups or _from_config(GROUPS, groups_before, small_config, config)
    if heads is None:
        return None
    if units.shared_kv:
        return heads, 1
    if units.runs:
        return heads, heads // stated[None] if stated.get(None) else units.runs
    if not units.grouped:
        return heads, heads
    return None if groups is None else (heads, groups)


def _from_config(names: tuple[str, ...], before: int, small_config: Any, config: Any) -> int | None:
    for name in names:
        if getattr(small_config, name, None) == before and isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return None


def _solve(units: Units, layer: nn.Module, heads: int, groups: int, known: dict[int, int]) -> bool:
    """Finds what each width of the copy is in the layer, one unknown after the other."""
    open_axes = list(units.owned)
    while open_axes:
        left = []
        for owned in open_axes:
            total, unknown = 0, dict[int, int]()
            for segment in owned.segments:
                for item in segment.items:
                    times = {"head": heads, "group": groups, "fixed": 1}[item.level]
                    if item.level != "fixed" and item.width in known:
                        total += times * known[item.width]
                    else:
                        unknown[item.width] = unknown.get(item.width, 0) + times
            if len(unknown) == 1:
                ((width, times),) = unknown.items()
                rest = length_of(layer, owned) - total
                if rest < 0 or rest % times:
                    return False
                known.setdefault(width, rest // times)
            elif unknown:
                left.append(owned)
        if len(left) == len(open_axes):
            return False
        open_axes = left
    return True


def _scaled(segment: Segment, known: dict[int, int]) -> Segment:
    return replace(segment, items=tuple(Item(item.level, known[item.width]) for item in segment.items))


def _sizes(before: Units, after: Units, layer: nn.Module, heads: int, groups: int) -> tuple[Size, ...]:
    """Sizes that mean the same in the layer; what only happened to be equal in the copy has another value there."""
    forms = dict(zip(_forms(before), _forms(after), strict=True))
    out = []
    for size in before.sizes:
        form = size.form if size.form in ((1, 0, 0), (0, 1, 0), None) else forms.get(size.form)
        stated = getattr(layer.get_submodule(size.module), size.name, None)
        known = form is not None or size.form is None
        if known and stated == value_of(form, heads, groups):
            out.append(Size(size.module, size.name, form))
    return tuple(out)


def _forms(units: Units) -> list[Form]:
    """In an order that is the same before and after; of equal ones the first counts."""
    return [o.form for o in units.owned] + [s.form for o in units.owned for s in o.segments if s.times != "once"]


def owned_names(units: Units) -> set[str]:
    """The parameters that units own entries of."""
    return {o.parameter for o in units.owned if isinstance(o, Owned)}
