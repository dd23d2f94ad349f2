"""What of a model is tuned at once, and where its output is compared with the untouched model's.

    half     the attention's weights, then the FFN's, norms with each; compared after the block. Half the optimizer's
             state of a block.
    block    all of a block; compared after it
    N        all of a block; compared after the N - 1 untouched blocks behind it, which are read for it: what the next
             blocks don't care about isn't made up for

A window of several blocks slides by one, and what lies behind it is never touched, so that a block is finished, and
on disk, before the next one is begun.
"""

from __future__ import annotations

from torch import nn

from secateur.calibration.walk import Block
from secateur.config.presets import Window
from secateur.model.architectures import Family


def parts(layer: nn.Module, family: Family, window: Window) -> list[frozenset[str]]:
    """Names of the parameters that are tuned together, one set after the other."""
    names = frozenset(name for name, _ in layer.named_parameters())
    if window != "half":
        return [names]
    attention, ffn = (_inside(names, family.modules_of(half)) for half in ("attention", "ffn"))
    return [names - ffn, names - attention]


def _inside(names: frozenset[str], modules: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for name in names if any(name.startswith(f"{module}.") for module in modules))


def ahead(block: Block, window: Window) -> list[tuple[int, nn.Module]]:
    """(index, untouched layer) of those behind the block that belong to its window."""
    last = block.index + (window if isinstance(window, int) else 1)
    return [(i, block.streamed.load(i)) for i in range(block.index + 1, min(last, block.streamed.checkpoint.layers))]
