"""Secateur: pruning shears for large language models.

import secateur
report = secateur.prune(secateur.make_recipe({"model": "path", "sites": "channel", "sparsity": 0.25}), "out")
model = secateur.load("out")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur._version import __version__

# Imported on first use: `import secateur` and `secateur --help` don't wait for torch and transformers.
_PUBLIC = {
    "METHODS": "secateur.methods",
    "Checkpoint": "secateur.model.checkpoint",
    "Cut": "secateur.model.sites",
    "Linear": "secateur.model.linears",
    "Method": "secateur.methods",
    "Moments": "secateur.numerics.moments",
    "StreamedModel": "secateur.model.streamed",
    "Pattern": "secateur.numerics.patterns",
    "Plan": "secateur.config.plan",
    "Recipe": "secateur.config.recipe",
    "Recovery": "secateur.config.training",
    "SecateurError": "secateur.errors",
    "Site": "secateur.model.sites",
    "Solution": "secateur.methods",
    "Units": "secateur.methods",
    "allocate": "secateur.numerics.keep_counts:keep_count",
    "bench": "secateur.benchmarking.bench",
    "calibrate": "secateur.api",
    "compress": "secateur.runtime.compress",
    "decompress": "secateur.runtime.decompress",
    "evaluate": "secateur.evaluation",
    "explain": "secateur.analysis.explain",
    "generate": "secateur.evaluation",
    "inspect": "secateur.analysis.inspect",
    "load": "secateur.api",
    "open_for_walk": "secateur.api",
    "load_recipe": "secateur.config.recipe",
    "make_recipe": "secateur.config.recipe",
    "make_recovery": "secateur.config.training",
    "prune": "secateur.pipeline.prune",
    "recover": "secateur.recovery.recover",
    "remove": "secateur.model.surgery",
    "save": "secateur.api",
    "sensitivity": "secateur.analysis.sensitivity",
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
    from secateur.analysis.explain import explain
    from secateur.analysis.inspect import inspect
    from secateur.analysis.sensitivity import sensitivity
    from secateur.api import calibrate, load, open_for_walk, save, sites
    from secateur.benchmarking.bench import bench
    from secateur.calibration.walk import walk
    from secateur.config.plan import Plan
    from secateur.config.recipe import Recipe, load_recipe, make_recipe
    from secateur.config.training import Recovery, make_recovery
    from secateur.evaluation import evaluate, generate
    from secateur.methods import METHODS, Method, Solution, Units
    from secateur.model.checkpoint import Checkpoint
    from secateur.model.linears import Linear
    from secateur.model.sites import Cut, Site
    from secateur.model.streamed import StreamedModel
    from secateur.model.surgery import remove, zero
    from secateur.numerics.keep_counts import keep_count as allocate
    from secateur.numerics.moments import Moments
    from secateur.numerics.patterns import Pattern
    from secateur.pipeline.prune import prune
    from secateur.recovery.recover import recover
    from secateur.runtime.compress import compress
    from secateur.runtime.decompress import decompress
