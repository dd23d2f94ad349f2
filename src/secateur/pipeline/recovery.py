"""Recovery as the last stage of a recipe: between the cut model's checkpoint and the report."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from secateur.config.recipe import Recipe
from secateur.config.training import Recovery
from secateur.data.documents import load_corpus
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.pipeline.inputs import Inputs, Services
from secateur.pipeline.result import PassResult
from secateur.recovery import account
from secateur.recovery.examples import is_task_data
from secateur.recovery.labelled import is_labelled
from secateur.recovery.measured import write_untrained
from secateur.recovery.recover import accelerated
from secateur.recovery.save import replace as put_in_place
from secateur.recovery.save import save_checkpoint
from secateur.recovery.task import Task, check, prepare
from secateur.recovery.train import TrainingResult, train
from secateur.report.schema.report import GateFacts
from secateur.system import distributed
from secateur.system.malloc import reusing_all
from secateur.workspace.folder import PRUNED, TRAINING


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
    if not is_task_data(data) and not is_labelled(data):
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


def recover_stage(inputs: Inputs, services: Services, result: PassResult) -> PassResult:
    """Trains the checkpoint of a pass and puts the trained one in its place; every rank takes part.

    The pruned checkpoint stays in the work area, to be measured.

    Returns: the result with the report's section, the gate's findings (both on the first rank) and more warnings.
    """
    recipe, monitor, device = inputs.recipe, services.monitor, inputs.streamed.device
    recovery = recipe.recover
    assert recovery is not None
    folder, work = services.store.final, services.store.folder(TRAINING)
    with accelerated(device), reusing_all():
        with distributed.in_step(), monitor.stage("open the pruned model"):
            task = prepare(
                folder,
                recovery,
                recovery.data or recipe.calibrate,
                recovery.teacher or inputs.lineage.path,
                device,
                recipe.dtype,
                [inputs.lineage.layers[place] for place in result.kept],
            )
        outcome = train(task, work, monitor, services.store)

    def deliver() -> PassResult:
        gate = _save(task, outcome, folder, services)
        warnings = (*result.warnings, *account.warnings_of(task, outcome))
        return replace(result, gate=gate, recovery=account.recovery_facts(task, outcome), warnings=warnings)

    return distributed.on_first(deliver) or result


def _save(task: Task, outcome: TrainingResult, folder: Path, services: Services) -> GateFacts:
    """Puts the trained checkpoint in the place of the pruned one; returns the gate's findings."""
    area = services.store.area
    new = area.work / "trained"
    new.mkdir(exist_ok=True)
    with services.monitor.stage("save the trained model"):
        gate = save_checkpoint(task, outcome, new, area.work)
        write_untrained(task, area)
        shutil.copytree(folder, area.work / PRUNED)
        put_in_place(folder, new)
    return {**gate, "seconds": services.monitor.stages[-1].seconds}
