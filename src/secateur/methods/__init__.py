"""One paper a file, pure functions of tensors. `METHODS` lists them all; nothing registers itself.

What needs torch is imported on first use: who only asks which methods there are doesn't wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from secateur.methods.index import INDEX
from secateur.methods.plugins import Plugins
from secateur.methods.registry import Methods

if TYPE_CHECKING:
    from secateur.methods.contract import GRADIENTS, Basis, Method, Solution, prune_weight
    from secateur.methods.units import ExpertUnits, Units
    from secateur.numerics.routing import ROUTING

METHODS = Methods(INDEX, Plugins(INDEX))

_LATER = {
    "secateur.methods.contract": {"GRADIENTS", "Basis", "Method", "Solution", "prune_weight"},
    "secateur.methods.units": {"ExpertUnits", "Units"},
    "secateur.numerics.routing": {"ROUTING"},
}

__all__ = ["GRADIENTS", "METHODS", "ROUTING", "Basis", "ExpertUnits", "Method", "Solution", "Units", "prune_weight"]


def __getattr__(name: str) -> Any:
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'secateur.methods' has no attribute '{name}'")
