"""`secateur recover`: a pruned folder in, a trained one out, with the same care as `prune`.

`recover` is the whole run, top to bottom; `recover_pruned` is the same as the last stage of a recipe.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from secateur._version import __version__
from secateur.config.training import Recovery
from secateur.data.documents import load_corpus
from secateur.data.sources import split_specs
from secateur.errors import InputError
from secateur.evaluation.tasks.run import ask
from secateur.model.hub import local_folder
from secateur.model.licence import licence_of
from secateur.model.remote_code import carried
from secateur.model.side_files import copy_regular, left_behind
from secateur.recovery import account, adapters
from secateur.recovery.forecast import as_dict
from secateur.recovery.measured import Wanted, judged_on_tasks, measured
from secateur.recovery.save import save_adapter, save_checkpoint
from secateur.recovery.states import read_best
from secateur.recovery.task import Task, prepare, teacher_of
from secateur.recovery.train import TrainingResult, forecast, train
from secateur.report import model_card
from secateur.report.html import page
from secateur.report.schema.recovery import RecoveryForecast
from secateur.report.schema.report import Measured, Report, no_report
from secateur.system import distributed
from secateur.system.decisions import Decisions
from secateur.system.device import resolve_device
from secateur.system.malloc import reusing_all
from secateur.system.monitor import Monitor
from secateur.workspace.folder import EVENTS, MARK, TRAINING, WORK, Workspace
from secateur.workspace.journal import Journal
from secateur.workspace.ownership import names_for_report

DEVICE = "ACCELERATE_TORCH_DEVICE"


def recover(
    model: str | Path,
    out: str | Path,
    recovery: Recovery,
    *,
    evaluate: str | None = None,
    tasks: str | None = None,
    tasks_limit: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    speed: bool = True,
    dry_run: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    finish: bool = False,
    quiet: bool = False,
) -> Report | RecoveryForecast:
    """Trains a pruned checkpoint into the folder `out`, its zeros kept; the result is never worse than the start.

    The best state, by the loss on sequences that aren't trained on, is saved, or the start where none was better.
    Under torchrun every rank calls this; rank 0 writes.

    Args:
        model: a pruned folder. Another model works too where its teacher is named, or no loss needs one.
        out: a new or empty folder.
        recovery: how to train and on what, from `make_recovery`; `data` must be given.
        evaluate: text for the figures of the report, or `none`; default: the sequences that aren't trained on.
        tasks: to judge the original, the pruned and the recovered model on, see `evaluate_tasks`.
        tasks_limit: only the first items of each task.
        device: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda:1`, `mps`, or what torch has here.
        dtype: of the products; `auto` is bf16 where the hardware multiplies it faster than fp32. Weights and their
            updates are fp32.
        speed: measure tokens a second and memory.
        dry_run: forecast the cost, write nothing.
        overwrite: an earlier result in `out` may be replaced.
        resume: go on with the interrupted run in `out`; its settings, text and models must be the same.
        finish: with `resume`: train no further, deliver the best state so far.
        quiet: no progress display.

    Returns:
        The report, as in report.json; empty on ranks other than 0. With `dry_run`, the forecast alone.

    Raises:
        SecateurError: in one line. `out` is then as it was before, or holds what `resume` goes on from.
    """
    adapters.check_installed(recovery)
    where = distributed.own_device(resolve_device(device))
    with distributed.group(where), ExitStack() as stack, accelerated(where), reusing_all():
        with distributed.in_step():
            _check(recovery, evaluate, resume, finish)
            asked = None if tasks is None else ask(tasks, tasks_limit)
            workspace = None
            if distributed.is_main() and not dry_run:
                pruned = local_folder(model)
                teachers = [Path(name) for name in (recovery.teacher, teacher_of(pruned)[0]) if name is not None]
                workspace = Workspace(out, overwrite, resume, [pruned, *teachers])
            if finish and workspace is not None and read_best(workspace.work / TRAINING) is None:
                raise InputError(f"{out}: holds no state better than the start yet; --resume alone goes on")
            monitor = Monitor(where, quiet or not distributed.is_main(), _stages(recovery, dry_run, evaluate, tasks))
            stack.callback(monitor.close)
            folder = Path(local_folder(model))
            with monitor.stage("open"):
                task = prepare(folder, recovery, str(recovery.data), teacher_of(folder)[0], where, dtype)
        if dry_run:
            with tempfile.TemporaryDirectory(prefix="secateur-") as scratch:
                return {"dry_run": True, "forecast": as_dict(forecast(task, same(Path(scratch)), monitor))}
        with distributed.in_step():
            decisions = Decisions()
            if workspace is not None:
                stack.enter_context(workspace.open())
                decisions = Decisions(_begin(task, workspace, monitor))
        begun = workspace.worth_keeping if workspace is not None else lambda: None
        outcome = train(task, same(Path(out) / WORK / TRAINING), monitor, decisions, begun, finish)
        if workspace is None:
            return no_report()
        wanted = Wanted(evaluate, speed, asked)
        return _deliver(str(model), task, outcome, workspace, monitor, wanted)


def _check(recovery: Recovery, evaluate: str | None, resume: bool, finish: bool) -> None:
    if recovery.data is None:
        raise InputError("no training text given; add --data FILE")
    if finish and not resume:
        raise InputError("--finish ends an interrupted run; add --resume")
    if evaluate not in (None, "none"):
        for spec in split_specs(str(evaluate)):
            load_corpus(spec, split="held_out")


def _stages(recovery: Recovery, dry_run: bool, evaluate: str | None, tasks: str | None) -> list[str]:
    names = ["open", *(["teacher"] if recovery.teacher_cache else []), "forecast"]
    if dry_run:
        return names
    names += [*(["learning rate"] if recovery.learning_rate is None else []), "train", "save"]
    return names + ([] if evaluate == "none" else ["evaluate"]) + ([] if tasks is None else ["tasks"])


@contextmanager
def accelerated(device: torch.device) -> Iterator[None]:
    """Tells accelerate which accelerator was named, and lets it forget device and process group at the end.

    It remembers both for good otherwise, and the next run of this process may have others.
    """
    named = os.environ.get(DEVICE)
    if device.type != "cpu" and device.index is not None:
        os.environ[DEVICE] = str(device)
    try:
        yield
    finally:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.pop(DEVICE, None)
        if named is not None:
            os.environ[DEVICE] = named


def same(folder: Path) -> Path:
    """The first rank's folder, on every rank."""
    return distributed.from_first(folder.absolute)


def _begin(task: Task, workspace: Workspace, monitor: Monitor) -> Journal:
    """Opens the journal and the event file; both go on where an interrupted run left them."""
    fingerprint = {
        **task.recovery.model_dump(mode="json"),
        "training data": task.text.sha256,
        "checkpoint": task.checkpoint.digest,
        "teacher": None if task.teacher is None else task.teacher.digest,
        "secateur": __version__,
    }
    journal = Journal(workspace.work, fingerprint)
    resumed = workspace.resume and journal.resume()
    if not resumed:
        journal.start()
    monitor.record(workspace.work / EVENTS, distributed.world(), resumed)
    return journal


def _deliver(
    model: str,
    task: Task,
    outcome: TrainingResult,
    workspace: Workspace,
    monitor: Monitor,
    wanted: Wanted,
) -> Report:
    """Saves, proves, measures, reports."""
    folder, final = task.checkpoint.path, workspace.final
    loadable = final
    with monitor.stage("save"):
        if task.recovery.how == "lora" and not task.recovery.merge:
            loadable = workspace.work / "merged"
            loadable.mkdir()
            gate = save_adapter(task, outcome, final, workspace.work, loadable)
        else:
            gate = save_checkpoint(task, outcome, final, workspace.work)
    outcome.model = task.model = None  # what is measured next shall have the machine's memory
    base, seconds = account.base_report(folder, task.checkpoint), monitor.stages[-1].seconds
    section = account.recovery_facts(task, outcome)
    code = carried(folder, getattr(task.checkpoint.config, "auto_map", None))
    notes = [*account.warnings_of(task, outcome), *left_behind(folder, code=code)]
    found: Measured = {"evaluation": None, "not_evaluated": "evaluate is none"}
    if wanted.evaluate != "none":
        with monitor.stage("evaluate"):
            found = measured(task, loadable, section, workspace, wanted, notes)
    if wanted.tasks is not None:
        with monitor.stage("tasks"):
            found |= judged_on_tasks(task, loadable, wanted.tasks, found, notes)
    report: Report = {
        **base,
        "gate": {**gate, "seconds": seconds},
        "recovery": section,
        "command": account.command(model, task.recovery, workspace.out),
        **found,
        "warnings": [*notes, *monitor.notes],
        **account.environment(task.device, task.dtype, monitor),
    }
    _write(report, folder, workspace)
    return report


def _write(report: Report, pruned: Path, workspace: Workspace) -> None:
    """Everything beside the weights, report.json last of all."""
    folder = workspace.final
    for name in ("plan.json", "recipe.yaml"):
        copy_regular(pruned, name, folder)
    runs = workspace.work / TRAINING / "runs"  # of trackers that write files
    if runs.is_dir():
        runs.rename(folder / "runs")
    shutil.copyfile(workspace.work / EVENTS, folder / EVENTS)
    (folder / "README.md").write_text(model_card.model_card(report, licence_of(pruned)), encoding="utf-8")
    page.write(report, folder)
    report["files"] = names_for_report(folder)
    (folder / MARK).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    workspace.deliver()


def stopped_line(out: Path) -> str:
    """What an interrupted run has left, for a person."""
    folder = out / WORK
    if not folder.is_dir():
        return "stopped; nothing was written"
    best = read_best(folder / TRAINING)
    if best is None:
        return "stopped; the same command with --resume goes on"
    return (
        f"stopped; the best state so far is that of step {best.step}: the same command with --resume goes on, with "
        "--resume --finish it is delivered as it is"
    )
