"""Recovery as the last stage of a recipe: between the cut model's checkpoint and the report."""

from __future__ import annotations

import shutil
from typing import Any

from secateur.config.recipe import Recipe
from secateur.config.training import Recovery
from secateur.data.documents import load_corpus
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.pipeline.run import Run
from secateur.recovery import account
from secateur.recovery.examples import is_task_data
from secateur.recovery.recover import accelerated, shared, write_untrained
from secateur.recovery.save import replace, save_checkpoint
from secateur.recovery.task import check, prepare
from secateur.recovery.train import train
from secateur.system import distributed
from secateur.workspace.folder import PRUNED, TRAINING, Area


def check_stage(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Refuses, before anything is cut, what the stage couldn't do afterwards.

    Raises:
        InputError: in one line.
    """
    recovery = recipe.recover
    if recovery is None:
        return
    check(recovery, checkpoint)
    if not recovery.merge:
        raise InputError("recover: an adapter needs a model to lie beside; leave merge on, or use secateur recover")
    data = recovery.data or recipe.calibrate
    if not is_task_data(data):
        try:
            load_corpus(data)
        except InputError as error:
            if recovery.data is not None:
                raise
            reason = (
                "recover trains on the calibration's text unless it has 'data' of its own, and that is one source"
            )
            raise InputError(f"{reason}; {error}") from None


def planned_recovery(recovery: Recovery) -> list[str]:
    """Names of the stages of the training."""
    names = ["open the pruned model", *(["teacher"] if recovery.teacher_cache else []), "forecast"]
    names += ["learning rate"] if recovery.learning_rate is None else []
    return [*names, "train", "save the trained model"]


def recover_stage(
    run: Run, recovery: Recovery, area: Area | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Trains the checkpoint in the work area and puts the result in its place; every rank takes part.

    The pruned checkpoint stays in the work area, to be measured.

    Returns:
        The report's section and the gate's findings; None on ranks other than 0.
    """
    recipe = run.recipe
    folder = shared(area.final if area is not None else None)
    work = shared(area.work / TRAINING if area is not None else None)
    with accelerated(run.streamed.device):
        with distributed.in_step(), run.monitor.stage("open the pruned model"):
            task = prepare(
                folder,
                recovery,
                recovery.data or recipe.calibrate,
                recovery.teacher or run.lineage.path,
                run.streamed.device,
                recipe.dtype,
                [run.lineage.layers[place] for place in run.kept],
            )
        outcome = train(task, work, run.monitor, run.journal)
    if area is None:
        return None, None
    new = area.work / "trained"
    new.mkdir(exist_ok=True)
    with run.monitor.stage("save the trained model"):
        gate = save_checkpoint(task, outcome, new, area.work)
        write_untrained(task, area)
        shutil.copytree(folder, area.work / PRUNED)
        replace(folder, new)
    run.warnings += account.warnings_of(task, outcome)
    return account.recovery_facts(task, outcome), gate | {"seconds": run.monitor.stages[-1].seconds}
