"""Export as the last stage of a recipe: the finished checkpoint in another program's form, beside it in `export`."""

from __future__ import annotations

from secateur.config.recipe import Recipe
from secateur.errors import InputError, UnsupportedModelError
from secateur.export.export import ANY, make, ready, told_of
from secateur.model.checkpoint import Checkpoint
from secateur.report.schema.export import Exported
from secateur.system.monitor import Monitor
from secateur.workspace.folder import Workspace
from secateur.workspace.ownership import EXPORT

STAGES = ["write", "prove"]


def check_export(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Refuses, before anything is cut, what the stage couldn't do afterwards.

    Raises:
        InputError: no such package, or the hub, which is a step of its own.
        UnsupportedModelError: the program doesn't run such models.
    """
    told = recipe.export
    if told is None:
        return
    if told.to == "hub":
        raise InputError("export: a result goes to the hub once it's there; use secateur export OUT --to hub")
    if told.to == "compressed" and "weight" not in recipe.sites:
        raise InputError(
            f"export: compressed leaves zeros out, and sites {', '.join(recipe.sites)} make none; add site weight"
        )
    if not checkpoint.family.causal and told.to not in ANY:
        raise UnsupportedModelError(f"export: {checkpoint.family.name} predicts no next token; leave it out")
    ready(checkpoint, told)


def export_stage(recipe: Recipe, workspace: Workspace, monitor: Monitor) -> Exported:
    """Exports the checkpoint that is about to be delivered."""
    told = recipe.export
    assert told is not None
    folder = workspace.final / EXPORT
    folder.mkdir()
    checkpoint = Checkpoint.open(workspace.final)
    made = make(checkpoint, folder, workspace.work, told, monitor, workspace.out.resolve().name)
    found = told_of(checkpoint, folder, workspace.out.name, f"{workspace.out.name}/{EXPORT}", told, made)
    found["seconds"] = round(sum(stage.seconds for stage in monitor.stages[-len(STAGES) :]), 3)
    return found
