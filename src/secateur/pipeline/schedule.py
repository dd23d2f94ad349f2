"""Gradual pruning: how much has gone after each of several steps, as recipes, one for each of them.

linear   s_k = s · k/K                        cuts of one size
cubic    s_k = s · (1 - (1 - k/K)³)           large cuts first, small ones once the model is small
                                              (Zhu & Gupta, https://arxiv.org/abs/1710.01878, equation 1)
"""

from __future__ import annotations

import math
from typing import NamedTuple

from secateur.config.configuration import method_name
from secateur.config.recipe import Recipe
from secateur.numerics.patterns import Pattern


class PruningStep(NamedTuple):
    """Where one step of a gradual run ends.

    Args:
        share: of all that goes, how much has gone by then.
        recipe: what this step is told; its sparsities are of the original model.
    """

    number: int
    share: float
    recipe: Recipe


def gone_after(number: int, steps: int, schedule: str) -> float:
    """The share of all that goes that has gone after step `number` (from 1) of `steps`."""
    part = number / steps
    return part if schedule == "linear" else 1 - (1 - part) ** 3


def pruning_steps(recipe: Recipe) -> list[PruningStep]:
    """The steps of a recipe, hidden dimensions aside, which go before the first one.

    A step that would take nothing (of an N:M pattern only whole weights go) is left out.
    """
    recipe = _without_hidden(recipe)
    if not recipe.sites:
        return [PruningStep(1, 1.0, recipe)]
    found = []
    for number in range(1, recipe.steps + 1):
        share = 1.0 if number == recipe.steps else gone_after(number, recipe.steps, recipe.schedule)
        own = _part_of(recipe, share)
        if own is not None:
            found.append(PruningStep(number, share, own))
    return found


def _without_hidden(recipe: Recipe) -> Recipe:
    if "hidden" not in recipe.sites:
        return recipe
    sites = tuple(kind for kind in recipe.sites if kind != "hidden")
    used = {method_name(recipe, kind) for kind in sites}
    method = tuple(name for name in recipe.method if name in used)
    changed: dict[str, object] = {"sites": sites, "method": method}
    if isinstance(recipe.sparsity, dict):
        changed["sparsity"] = {k: part for k, part in recipe.sparsity.items() if k != "hidden"} or None
    return recipe.model_copy(update=changed)


def _part_of(recipe: Recipe, share: float) -> Recipe | None:
    pattern = Pattern.parse(recipe.pattern)
    sites, changed = recipe.sites, dict[str, object]()
    if not pattern.free:
        assert pattern.of is not None
        assert pattern.kept is not None
        kept = pattern.of - math.floor((pattern.of - pattern.kept) * share + 1e-9)
        if kept == pattern.of:
            sites = tuple(kind for kind in recipe.sites if kind != "weight")
            changed["pattern"] = "free"
        else:
            changed["pattern"] = f"{kept}:{pattern.of}"
    if not sites:
        return None
    if isinstance(recipe.sparsity, dict):
        kinds = [k for k in recipe.sparsity if k in sites and (pattern.free or k != "weight")]
        changed["sparsity"] = {kind: recipe.sparsity[kind] * share for kind in kinds} or None
    elif recipe.sparsity is not None:
        patterned = sites == ("weight",) and not pattern.free
        changed["sparsity"] = None if patterned else recipe.sparsity * share
    methods = tuple(name for name in recipe.method if any(method_name(recipe, kind) == name for kind in sites))
    return recipe.model_copy(update={**changed, "steps": 1, "sites": sites, "method": methods})
