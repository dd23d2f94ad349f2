"""Widths of a layer of a detected architecture: shapes of what its units own, and sizes that its modules state."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.model.anatomy import has_tensor, tensor_of
from secateur.model.architectures import Family
from secateur.model.json_files import Json
from secateur.model.linears import submodule

STATED = ("num_experts", "intermediate_dim", "intermediate_size", "expert_dim")


def detected_widths(layer: nn.Module, family: Family) -> Json:
    """{"shapes": {parameter: its shape}, "sizes": {module: {attribute: value}}} of everything that a cut changes; and
    "heads", see `modeling_secateur.hand_on_heads`, where that is less than all."""
    names, stated = [], list[tuple[str, str]]()
    for units in family.anatomy_of(layer).units:
        names += [owned.parameter for owned in units.owned]
        stated += [(size.module, size.name) for size in units.sizes]
        stated += [(o.parameter.rpartition(".")[0], o.epsilon[0]) for o in units.owned if o.epsilon is not None]
    e = family.experts
    if e is not None and submodule(layer, e.path) is not None:
        names += [
            f"{e.path}.{e.up}",
            f"{e.path}.{e.down}",
            f"{e.router}.weight",
            *(n for n, _ in e.also if has_tensor(layer, n)),
        ]
        names += [f"{e.path}.{e.up}_bias", f"{e.path}.{e.down}_bias"] if e.form == "interleaved" else []
        names += [f"{e.path}.{e.gate}"] if e.gate else []
        stated += (*e.sizes, *e.choices)
        stated += [(e.path, name) for name in STATED if _states(layer, e.path, name)]
        stated += [(e.router, name) for name in ("num_experts",) if _states(layer, e.router, name)]
    sizes: dict[str, dict[str, int]] = {}
    for module, name in stated:
        sizes.setdefault(module, {})[name] = getattr(layer.get_submodule(module), name)
    found: Json = {"shapes": {n: list(tensor_of(layer, n).shape) for n in dict.fromkeys(names)}, "sizes": sizes}
    heads: Any = getattr(layer, "secateur_heads", None)
    return found | ({"heads": heads} if heads and len(heads["kept"]) < heads["all"] else {})


def _states(layer: nn.Module, module: str, name: str) -> bool:
    return isinstance(getattr(layer.get_submodule(module), name, None), int)
