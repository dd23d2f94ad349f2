"""Secateur: pruning shears for large language models.

import secateur
report = secateur.prune(secateur.make_recipe({"model": "path", "sites": "channel", "sparsity": 0.25}), "out")
model = secateur.load("out")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported on first use: `import secateur` and `secateur --help` don't wait for torch and transformers.
_PUBLIC = {
    "METHODS": "secateur.methods",
    "Checkpoint": "secateur.model.checkpoint",
    "Cut": "secateur.model.sites",
    "Linear": "secateur.model.linears",
    "Method": "secateur.methods",
    "Moments": "secateur.numerics.moments",
    "Outer": "secateur.model.outer",
    "Pattern": "secateur.numerics.patterns",
    "Plan": "secateur.plan",
    "Recipe": "secateur.recipe",
    "Recovery": "secateur.recovery_settings",
    "SecateurError": "secateur.errors",
    "Site": "secateur.model.sites",
    "Solution": "secateur.methods",
    "Units": "secateur.methods",
    "allocate": "secateur.allocation.uniform:keep_count",
    "bench": "secateur.benchmarking.run",
    "calibrate": "secateur.api",
    "compress": "secateur.runtime.compress",
    "decompress": "secateur.runtime.decompress",
    "evaluate": "secateur.evaluation",
    "explain": "secateur.reasons",
    "generate": "secateur.evaluation",
    "inspect": "secateur.anatomy",
    "load": "secateur.api",
    "open_for_walk": "secateur.api",
    "load_recipe": "secateur.recipe",
    "make_recipe": "secateur.recipe",
    "make_recovery": "secateur.recovery_settings",
    "prune": "secateur.pipeline",
    "recover": "secateur.recovery.recover",
    "remove": "secateur.model.surgery",
    "save": "secateur.api",
    "sensitivity": "secateur.study",
    "sites": "secateur.api",
    "walk": "secateur.calibration.walk",
    "zero": "secateur.model.surgery",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'secateur' has no attribute '{name}'")
    import importlib

    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


if TYPE_CHECKING:
    from secateur.allocation.uniform import keep_count as allocate
    from secateur.anatomy import inspect
    from secateur.api import calibrate, load, open_for_walk, save, sites
    from secateur.benchmarking.run import bench
    from secateur.calibration.walk import walk
    from secateur.evaluation import evaluate, generate
    from secateur.methods import METHODS, Method, Solution, Units
    from secateur.model.checkpoint import Checkpoint
    from secateur.model.linears import Linear
    from secateur.model.outer import Outer
    from secateur.model.sites import Cut, Site
    from secateur.model.surgery import remove, zero
    from secateur.numerics.moments import Moments
    from secateur.numerics.patterns import Pattern
    from secateur.pipeline import prune
    from secateur.plan import Plan
    from secateur.reasons import explain
    from secateur.recipe import Recipe, load_recipe, make_recipe
    from secateur.recovery.recover import recover
    from secateur.recovery_settings import Recovery, make_recovery
    from secateur.runtime.compress import compress
    from secateur.runtime.decompress import decompress
    from secateur.study import sensitivity
