"""How many of what go: fractions of a recipe as counts that this checkpoint can give."""

from __future__ import annotations

import math
from collections.abc import Callable

from secateur.config.plan import SUB_BLOCKS
from secateur.config.recipe import Recipe
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.rotation import dimension_multiple
from secateur.model.sites import Site
from secateur.numerics.keep_counts import keep_count


def protected_layers(recipe: Recipe, checkpoint: Checkpoint) -> frozenset[int]:
    """Layers that nothing is cut from."""
    layers = checkpoint.layers
    for index in recipe.protect:
        if not -layers <= index < layers:
            raise InputError(f"protect names layer {index}, but the model has layers 0 to {layers - 1}")
    return frozenset(index % layers for index in recipe.protect)


def whole_parts(recipe: Recipe, kind: str, layers: int) -> int:
    """How many layers, or sub-blocks of a kind, a recipe takes from a model with so many layers."""
    return math.floor(recipe.sparsity_for(kind) * layers + 0.5) if kind in recipe.sites else 0


def layers_to_drop(recipe: Recipe, checkpoint: Checkpoint, protected: frozenset[int]) -> int:
    """How many layers go whole."""
    if "layer" not in recipe.sites:
        return 0
    count = whole_parts(recipe, "layer", checkpoint.layers)
    free = checkpoint.layers - len(protected)
    if count == 0:
        raise InputError(
            f"sparsity {recipe.sparsity_for('layer'):g} of {checkpoint.layers} layers is less than half a layer; "
            f"the least is {1 / checkpoint.layers:.3g}"
        )
    if count > free or count >= checkpoint.layers:
        most = min(free, checkpoint.layers - 1)
        raise InputError(f"sparsity asks for {count} layers to go, but at most {most} of {checkpoint.layers} may")
    return count


def sub_blocks_to_drop(
    recipe: Recipe, checkpoint: Checkpoint, protected: frozenset[int], layers: int
) -> dict[str, int]:
    """Kind -> how many of the model's attention, or FFN, sub-blocks go.

    Args:
        layers: how many go whole beside them.
    """
    counts: dict[str, int] = {}
    for kind in (kind for kind in SUB_BLOCKS if kind in recipe.sites):
        share = recipe.sparsity_for(kind)
        counts[kind] = whole_parts(recipe, kind, checkpoint.layers)
        most = checkpoint.layers - len(protected) - layers
        if counts[kind] == 0:
            raise InputError(
                f"sparsity {share:g} of {checkpoint.layers} {kind} sub-blocks is less than half of one; "
                f"the least is {1 / checkpoint.layers:.3g}"
            )
        if counts[kind] > most:
            raise InputError(f"sparsity asks for {counts[kind]} {kind} sub-blocks to go, but at most {most} may")
    return counts


def keep_counts(recipe: Recipe, had: Callable[[Site], int] = lambda site: site.units) -> Callable[[Site], int]:
    """Site -> how many of its units stay.

    Args:
        had: how many a site had in the model that the recipe's fractions are of; where some have gone already, that
            may be more than it has now, and what stays may be more too: then nothing goes.
    """

    def count(site: Site) -> int:
        return keep_count(
            had(site), recipe.sparsity_for(asked(recipe, site.kind)), site.groups, multiple(recipe, site)
        )

    return count


def kept_dimensions(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """How many hidden dimensions stay; all, where less than one step of them would go."""
    units = int(checkpoint.config.hidden_size)
    return keep_count(units, recipe.sparsity_for("hidden"), 1, dimension_step(recipe, checkpoint))


def dimension_step(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """What the number of kept hidden dimensions must be a multiple of."""
    return math.lcm(recipe.round_to, dimension_multiple(checkpoint))


def multiple(recipe: Recipe, site: Site) -> int:
    """What the number of kept units must be a multiple of."""
    return math.lcm(site.multiple, recipe.round_to) if site.kind == "channel" else site.multiple


def asked(recipe: Recipe, kind: str) -> str:
    """The kind under which the recipe asks for a site: query heads without groups are cut as KV groups."""
    return kind if kind in recipe.sites else "query_head"
