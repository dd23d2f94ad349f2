"""Before and after on tasks, where a recipe names some."""

from __future__ import annotations

from secateur.config.aim import tasks_of_run
from secateur.config.recipe import Recipe
from secateur.errors import InputError
from secateur.evaluation.tasks.judged import AFTER, BEFORE, PRUNED, judge
from secateur.evaluation.tasks.run import Asked, ask, check_head
from secateur.model.checkpoint import Checkpoint
from secateur.model.heads import SEQUENCE, TOKEN, head_of
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.result import PassResult
from secateur.report.schema.report import Measured
from secateur.system.memory import fits_in_memory
from secateur.system.monitor import Monitor
from secateur.workspace.folder import PRUNED as PRUNED_FOLDER
from secateur.workspace.folder import Workspace

TOO_LARGE = "not judged on tasks: that takes the whole model in memory, and it doesn't fit"


def asked_of(recipe: Recipe) -> Asked | None:
    """The tasks of a recipe, read; None where it names none.

    Raises:
        InputError: see `evaluation.tasks.run.ask`.
    """
    tasks = tasks_of_run(recipe)
    return None if tasks is None else ask(tasks, recipe.tasks_limit)


def check_tasks(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Refuses tasks that can't be had, or that the model can't do, before anything is written.

    Raises:
        InputError: in one line.
    """
    asked = asked_of(recipe)
    if asked is None:
        return
    check_head(checkpoint.whole_config, recipe.model, asked)
    if not checkpoint.family.causal and head_of(checkpoint.whole_config) not in (SEQUENCE, TOKEN):
        raise InputError(f"--tasks: {checkpoint.config.model_type} predicts no next token; leave the tasks out")


def judged_on_tasks(
    inputs: Inputs, result: PassResult, workspace: Workspace, monitor: Monitor, measured: Measured
) -> tuple[Measured, tuple[str, ...]]:
    """The report's section, and notes. Nothing where no tasks were named.

    Args:
        measured: what was measured on text, which is ranked with the tasks.
    """
    asked = asked_of(inputs.recipe)
    if asked is None:
        return {}, ()
    if not fits_in_memory(inputs.checkpoint.parameters, inputs.judged_in, inputs.config.memory):
        return {}, (TOO_LARGE,)
    states = {BEFORE: inputs.lineage.path, AFTER: workspace.final}
    if result.recovery is not None:
        states[PRUNED] = workspace.work / PRUNED_FOLDER
    evaluation = measured.get("evaluation")
    texts = None if evaluation is None else (evaluation["before"], evaluation["after"])
    with monitor.stage("tasks") as step:
        found = judge(states, asked, (inputs.recipe.device, inputs.recipe.dtype), texts, step)
    return {"tasks": found}, tuple(found["notes"])
