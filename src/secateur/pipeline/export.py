"""Export as the last stage of a recipe: the finished checkpoint in another program's form, beside it in `export`."""

from __future__ import annotations

from secateur.config.recipe import Recipe
from secateur.cut.rules import Rules
from secateur.errors import InputError, UnsupportedModelError
from secateur.export.export import ANY, make, ready, told_of
from secateur.model.checkpoint import Checkpoint
from secateur.model.linears import linears_of
from secateur.report.schema.export import Exported
from secateur.system.monitor import Monitor
from secateur.workspace.folder import Workspace
from secateur.workspace.ownership import EXPORT

STAGES = ["write", "prove"]


def check_export(recipe: Recipe, rules: Rules, checkpoint: Checkpoint) -> None:
    """Refuses, before anything is cut, what the stage couldn't do afterwards.

    Args:
        rules: what the recipe, or a plan, means for this checkpoint.

    Raises:
        InputError: no such package, or the hub, which is a step of its own.
        UnsupportedModelError: the program doesn't run such models.
    """
    told = recipe.export
    if told is None:
        return
    if told.to == "hub":
        raise InputError("export: a result goes to the hub once it's there; use secateur export OUT --to hub")
    if told.to == "compressed" and not _saving(rules, checkpoint):
        raise InputError(
            "export: compressed leaves zeros out, and this makes none, or so few that nothing is saved; cut weights, "
            "such as sites: weight, sparsity: 0.5"
        )
    if not checkpoint.family.causal and told.to not in ANY:
        raise UnsupportedModelError(f"export: {checkpoint.family.name} predicts no next token; leave it out")
    ready(checkpoint, told)


def _saving(rules: Rules, checkpoint: Checkpoint) -> bool:
    """Whether some Linear gets so many zeros that it's smaller without them, with a bit for each entry."""
    if rules.weight_method is None:
        return False
    least = 1 / (8 * checkpoint.dtype.itemsize)
    layers = checkpoint.template.get_submodule(checkpoint.family.layers)
    return any(
        rules.weight_sparsity(index)(linear.name) > least
        for index, layer in enumerate(layers.children())
        if index not in rules.protected
        for linear in linears_of(layer, checkpoint.family)
    )


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
