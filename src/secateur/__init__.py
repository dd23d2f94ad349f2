"""Secateur: pruning shears for large language models.

import secateur
report = secateur.prune(secateur.make_recipe({"model": "path", "sites": "channel", "sparsity": 0.25}), "out")
model = secateur.load("out")
"""

from __future__ import annotations

import warnings
from typing import Any

import lazy_loader

from secateur._version import __version__

# The public names stand in __init__.pyi. Each is imported on first use: `import secateur` and `secateur --help` don't
# wait for torch and transformers.
_public, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = ["__version__", *_names]

# Old public name: new one; an old name works for one release.
_RENAMED = {"Outer": "StreamedModel", "allocate": "keep_counts"}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        return _public(name)
    new = _RENAMED[name]
    warnings.warn(f"secateur.{name} is now secateur.{new}", DeprecationWarning, stacklevel=2)
    return _public(new)
