"""Recovery as the last stage of a recipe: between the saved cut model and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur import distributed
from secateur.data.documents import load_corpus
from secateur.errors import InputError
from secateur.evaluation.evaluation import evaluate
from secateur.recipe import Recipe
from secateur.recovery import account
from secateur.recovery.examples import is_task_data
from secateur.recovery.recover import accelerated, shared
from secateur.recovery.save import replace, save_checkpoint
from secateur.recovery.task import check, prepare
from secateur.recovery.train import train
from secateur.recovery_settings import Recovery
from secateur.run import Run
from secateur.workspace import TRAINING, Workspace


def check_stage(recipe: Recipe, run: Run) -> None:
    """Refuses, before anything is cut, what the stage couldn't do afterwards.

    Raises:
        InputError: in one line.
    """
    recovery = recipe.recover
    if recovery is None:
        return
    check(recovery, run.checkpoint)
    if not recovery.merge:
        raise InputError("recover: an adapter needs a model to lie beside; leave merge on, or use secateur recover")
    data = recovery.data or recipe.calibrate
    if not is_task_data(data):
        load_corpus(data)


def recover_stage(run: Run, recovery: Recovery, workspace: Workspace | None) -> dict[str, Any]:
    """Trains the checkpoint in the work area and puts the result in its place; every rank takes part.

    Returns:
        The gate's findings under `gate`, the report's section under `recovery`, and `warnings`; empty on ranks
        other than 0.
    """
    recipe = run.recipe
    folder = shared(workspace.final if workspace is not None else None)
    work = shared(workspace.work / TRAINING if workspace is not None else None)
    with accelerated():
        with distributed.in_step(), run.monitor.stage("open the pruned model"):
            task = prepare(
                folder,
                recovery,
                recovery.data or recipe.calibrate,
                recovery.teacher or run.checkpoint.path,
                run.outer.device,
                recipe.dtype,
                run.kept,
            )
        outcome = train(task, work, run.monitor, run.journal)
    if workspace is None:
        return {}
    new = workspace.work / "recovered"
    new.mkdir(exist_ok=True)
    with run.monitor.stage("save what was learned"):
        gate = save_checkpoint(task, outcome, new, workspace.work)
        replace(folder, new)
    section = account.recovery_facts(task, outcome)
    gate |= {"seconds": run.monitor.stages[-1].seconds}
    return {"gate": gate, "recovery": section, "warnings": account.warnings_of(task, outcome)}


def pruned_figures(folder: Path, data: str, device: str, dtype: str) -> dict[str, Any]:
    """What the pruned model is worth before it's trained: a row of `recovery.states`."""
    return account.state_figures("pruned", evaluate(folder, data, None, device, dtype, speed=False))
