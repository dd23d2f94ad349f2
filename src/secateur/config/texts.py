"""Texts that a recipe names, looked for before anything is imported to read them."""

from __future__ import annotations

from secateur.config.recipe import Recipe
from secateur.data.documents import check_there
from secateur.data.prompts import check_prompts
from secateur.data.sources import shares_of, split_specs
from secateur.data.tasks import check_tasks


def check_texts(recipe: Recipe) -> None:
    """Refuses a recipe whose prompts, texts or tasks aren't there.

    Raises:
        InputError: which one, in one line.
    """
    if recipe.prompts is not None:
        check_prompts(recipe.prompts)
    if recipe.calibrate != "self":
        for source, _ in shares_of(recipe.calibrate):
            check_there(source)
    if recipe.evaluate not in (None, "none"):
        for source in split_specs(recipe.evaluate):
            check_there(source)
    for named in (recipe.tasks, recipe.for_task):
        if named is not None:
            check_tasks(split_specs(named, "--tasks"))
