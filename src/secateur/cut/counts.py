"""How many of what go: fractions of a recipe as counts that this checkpoint can give."""

from __future__ import annotations

import math
from collections.abc import Callable

from secateur.config.configuration import Configuration
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.rotation import dimension_multiple
from secateur.model.site_kinds import SUB_BLOCKS
from secateur.model.sites import Site
from secateur.numerics.keep_counts import keep_count


def protected_layers(config: Configuration, checkpoint: Checkpoint) -> frozenset[int]:
    """Layers that nothing is cut from."""
    layers = checkpoint.layers
    for index in config.protect:
        if not -layers <= index < layers:
            raise InputError(f"protect names layer {index}, but the model has layers 0 to {layers - 1}")
    return frozenset(index % layers for index in config.protect)


def whole_parts(config: Configuration, kind: str, layers: int) -> int:
    """How many layers, or sub-blocks of a kind, are taken from a model with so many layers."""
    return math.floor(config.sparsities[kind] * layers + 0.5) if kind in config.sites else 0


def layers_to_drop(config: Configuration, checkpoint: Checkpoint, protected: frozenset[int]) -> int:
    """How many layers go whole."""
    if "layer" not in config.sites:
        return 0
    count = whole_parts(config, "layer", checkpoint.layers)
    free = checkpoint.layers - len(protected)
    if count == 0:
        raise InputError(
            f"sparsity {config.sparsities['layer']:g} of {checkpoint.layers} layers is less than half a layer; "
            f"the least is {1 / checkpoint.layers:.3g}"
        )
    if count > free or count >= checkpoint.layers:
        most = min(free, checkpoint.layers - 1)
        raise InputError(f"sparsity asks for {count} layers to go, but at most {most} of {checkpoint.layers} may")
    return count


def sub_blocks_to_drop(
    config: Configuration, checkpoint: Checkpoint, protected: frozenset[int], layers: int
) -> dict[str, int]:
    """Kind -> how many of the model's attention, or FFN, sub-blocks go.

    Args:
        layers: how many go whole beside them.
    """
    counts: dict[str, int] = {}
    for kind in (kind for kind in SUB_BLOCKS if kind in config.sites):
        share = config.sparsities[kind]
        if not any(site.kind == kind for sites in checkpoint.sites for site in sites):
            raise InputError(f"site '{kind}': {checkpoint.config.model_type} models like this one have none")
        counts[kind] = whole_parts(config, kind, checkpoint.layers)
        most = checkpoint.layers - len(protected) - layers
        if counts[kind] == 0:
            raise InputError(
                f"sparsity {share:g} of {checkpoint.layers} {kind} sub-blocks is less than half of one; "
                f"the least is {1 / checkpoint.layers:.3g}"
            )
        if counts[kind] > most:
            raise InputError(f"sparsity asks for {counts[kind]} {kind} sub-blocks to go, but at most {most} may")
    return counts


def keep_counts(config: Configuration, had: Callable[[Site], int] = lambda site: site.units) -> Callable[[Site], int]:
    """Site -> how many of its units stay.

    Args:
        had: how many a site had in the model that the fractions are of; where some have gone already, that
            may be more than it has now, and what stays may be more too: then nothing goes.
    """

    def count(site: Site) -> int:
        return keep_count(had(site), config.sparsities[asked(config, site.kind)], site.groups, multiple(config, site))

    return count


def kept_dimensions(config: Configuration, checkpoint: Checkpoint) -> int:
    """How many hidden dimensions stay; all, where less than one step of them would go."""
    units = int(checkpoint.config.hidden_size)
    return keep_count(units, config.sparsities["hidden"], 1, dimension_step(config, checkpoint))


def dimension_step(config: Configuration, checkpoint: Checkpoint) -> int:
    """What the number of kept hidden dimensions must be a multiple of."""
    return math.lcm(config.hidden_step, dimension_multiple(checkpoint))


def multiple(config: Configuration, site: Site) -> int:
    """What the number of kept units must be a multiple of."""
    return math.lcm(site.multiple, config.round_to) if site.kind == "channel" else site.multiple


def asked(config: Configuration, kind: str) -> str:
    """The kind under which the recipe asks for a site: query heads without groups are cut as KV groups."""
    return kind if kind in config.sites else "query_head"
