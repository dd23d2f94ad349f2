"""A target in parameters, bytes, FLOPs or measured time, as the sparsity that reaches it.

What a cut leaves is known before it is made: its shapes. A model without weights is cut at a trial sparsity as the
run would cut it, the same in every layer, and counted; for `latency` it's filled with random numbers and timed, since
how fast a shape runs doesn't depend on what is in it. The least sparsity that is within the target is the run's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import CONFIG_MAPPING

from secateur.config.configuration import Configuration, resolve
from secateur.config.quantities import parse_amount
from secateur.config.recipe import LIMITS, Recipe
from secateur.cut.checks import sites_in
from secateur.cut.counts import keep_counts, kept_dimensions, protected_layers, whole_parts
from secateur.cut.rules import unit_kinds_of
from secateur.cut.units import choose, mask_of
from secateur.errors import InputError
from secateur.evaluation.speed import speed
from secateur.model.architectures import Family
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import model_class
from secateur.model.flops import flops_per_token
from secateur.model.json_files import Json
from secateur.model.result_config import new_config
from secateur.model.rotation import check_rotatable, narrow_values
from secateur.model.site_kinds import KINDS, SUB_BLOCKS, TURNS, WHOLE
from secateur.model.sites import sites_of
from secateur.model.surgery import drop, remove, update_heads
from secateur.model.uneven import layer_widths
from secateur.system.device import resolve_device, resolve_dtype

FINEST = 1000  # steps of the sparsity
TIMED = 16  # the same where every trial is a measurement
MOST = 0.95


class Shape(NamedTuple):
    """What a checkpoint of this sparsity would be; `template` has no weights."""

    config: Any
    family: Family
    template: Any

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.template.get_submodule(self.family.layers).children())

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.template.parameters())


def resolved(recipe: Recipe, checkpoint: Checkpoint, step: Callable[[str], None] = lambda text: None) -> Recipe:
    """The recipe with the sparsity that reaches its target, without kinds of sites that lose nothing then; the same
    recipe where it has no target.

    Args:
        step: called with each trial.

    Raises:
        InputError: no cut of these sites reaches it, or none is needed.
    """
    key = recipe.limit
    if key is None:
        return recipe
    if "hidden" in recipe.sites:
        check_rotatable(checkpoint)
    asked, whole = str(getattr(recipe, key)), _MEASURES[key](recipe, checkpoint, 0.0)
    wanted = parse_amount(asked, key, whole)
    if wanted >= whole:
        raise InputError(f"{key} {asked}: the model has {_said(key, whole)} already; give less")
    steps = TIMED if key == "latency" else FINEST

    def left(number: int) -> float:
        sparsity = MOST * number / steps
        found = _MEASURES[key](recipe, checkpoint, sparsity)
        step(f"sparsity {sparsity:.3g}: {_said(key, found)}")
        return found

    low, high = 0, steps
    least = left(high)
    if least > wanted:
        raise InputError(
            f"{key} {asked}: with {MOST:.0%} of {', '.join(recipe.sites)} gone there are still {_said(key, least)}; "
            "give more, or more sites"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= wanted else (middle, high)
    sparsity = round(MOST * high / steps, 6)
    chosen = recipe.model_copy(update={"sparsity": sparsity})
    return chosen.model_copy(update={"sites": _losing(chosen, checkpoint)})


def _losing(recipe: Recipe, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The kinds of sites that lose something at the recipe's sparsity: of some a whole unit is more than that."""
    config = resolve(recipe)
    count, every = keep_counts(config), sites_in(checkpoint)

    def loses(kind: str) -> bool:
        if kind in WHOLE:
            return whole_parts(config, kind, checkpoint.layers) > 0
        if KINDS[kind].goes == "basis":
            return kept_dimensions(config, checkpoint) < checkpoint.config.hidden_size
        names = unit_kinds_of(frozenset({kind}), checkpoint)
        return any(count(site) < site.units for site in every if site.kind in names)

    return tuple(kind for kind in recipe.sites if loses(kind))


def shape_at(recipe: Recipe, checkpoint: Checkpoint, sparsity: float) -> Shape:
    """What is left when every site of the recipe has lost this fraction; of layers and sub-blocks the last ones."""
    trial = resolve(recipe.model_copy(update={"sparsity": sparsity, **dict.fromkeys(LIMITS)}))
    protected, family = protected_layers(trial, checkpoint), checkpoint.family
    free = [i for i in range(checkpoint.layers) if i not in protected]
    gone = min(whole_parts(trial, "layer", checkpoint.layers), len(free) - (not protected))
    kept = [i for i in range(checkpoint.layers) if i not in free[len(free) - gone :]]
    halves = {
        kind: [i for i in kept if i not in protected][-count:]
        for kind in SUB_BLOCKS
        if (count := whole_parts(trial, kind, checkpoint.layers))
    }
    layers = list(checkpoint.skeleton().get_submodule(family.layers).children())
    for index in kept:
        _cut(layers[index], index, trial, checkpoint, halves, index in protected)
    narrow = {}
    if "hidden" in trial.sites and (hidden := kept_dimensions(trial, checkpoint)) < checkpoint.config.hidden_size:
        narrow = narrow_values(checkpoint, hidden)
    return shape_of(checkpoint, kept, layers, narrow)


def shape_of(checkpoint: Checkpoint, kept: Sequence[int], layers: Sequence[nn.Module], narrow: Json) -> Shape:
    """The shape of a checkpoint with these layers.

    Args:
        kept: those that stay.
        layers: every layer of the model, without weights; those that stay have been cut.
        narrow: keys of its configuration that say fewer hidden dimensions.
    """
    family = checkpoint.family
    widths = {
        place: layer_widths(layers[i], family, checkpoint.config, checkpoint.head_dim) for place, i in enumerate(kept)
    }
    values = new_config(checkpoint, tuple(kept), widths) | narrow
    config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    with torch.device("meta"):
        template = model_class(config)._from_config(config, dtype=torch.float32)
    template.tie_weights()
    return Shape(config, family, template)


def _cut(
    layer: nn.Module,
    index: int,
    config: Configuration,
    checkpoint: Checkpoint,
    halves: dict[str, list[int]],
    whole: bool,
) -> None:
    """Narrows one layer without weights, in place."""

    def sites() -> list[Any]:
        return sites_of(layer, checkpoint.family, index, checkpoint.head_dim)

    for kind, places in halves.items():
        for site in [site for site in sites() if site.kind == kind and index in places]:
            drop(layer, site, checkpoint.family)
    count, kinds = keep_counts(config), unit_kinds_of(frozenset(config.sites), checkpoint)
    for kind in () if whole else (kind for kind in TURNS if kind in kinds):
        own = [site for site in sites() if site.kind == kind]
        keeps = [choose(torch.arange(site.units), site, max(count(site), site.least)) for site in own]
        if own:
            remove(layer, [(site, mask_of(keep, site.units)) for site, keep in zip(own, keeps, strict=True)])
            update_heads(layer, checkpoint.family, checkpoint.head_dim)


def _parameters(recipe: Recipe, checkpoint: Checkpoint, sparsity: float) -> float:
    return shape_at(recipe, checkpoint, sparsity).parameters


def _bytes(recipe: Recipe, checkpoint: Checkpoint, sparsity: float) -> float:
    share = shape_at(recipe, checkpoint, sparsity).parameters / shape_at(recipe, checkpoint, 0.0).parameters
    return checkpoint.bytes_on_disk * share


def _flops(recipe: Recipe, checkpoint: Checkpoint, sparsity: float) -> float:
    shape = shape_at(recipe, checkpoint, sparsity)
    return flops_per_token(shape, shape.layers)


def _seconds(recipe: Recipe, checkpoint: Checkpoint, sparsity: float) -> float:
    """Of a decoding step at batch 1, on this machine."""
    shape = shape_at(recipe, checkpoint, sparsity)
    device = resolve_device(recipe.device)
    dtype = resolve_dtype(recipe.dtype, device, checkpoint.config)
    return 1 / speed(filled(shape, device, dtype)).decode_tokens_per_s


def filled(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """A model of a shape, with random weights: how fast it runs doesn't depend on what is in it."""
    with torch.device(device):
        return model_class(shape.config)._from_config(copy.deepcopy(shape.config), dtype=dtype).eval()


_MEASURES: dict[str, Callable[[Recipe, Checkpoint, float], float]] = {
    "params": _parameters,
    "size": _bytes,
    "flops": _flops,
    "latency": _seconds,
}


def _said(key: str, value: float) -> str:
    if key == "latency":
        return f"{1000 * value:.3g} ms a token"
    unit = {"params": "parameters", "size": "bytes", "flops": "FLOPs a token"}[key]
    return f"{value:,.0f} {unit}"
