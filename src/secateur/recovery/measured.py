"""The original, the pruned and the recovered model on text that none of them was trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from secateur.evaluation.agreement import agree
from secateur.evaluation.evaluation import evaluate as measure
from secateur.evaluation.evaluation import state_figures
from secateur.evaluation.tasks.judged import AFTER, BEFORE, PRUNED, judge
from secateur.evaluation.tasks.run import Asked
from secateur.model.checkpoint import Checkpoint
from secateur.model.containers.folder import plain_folder
from secateur.model.hub import local_folder
from secateur.recovery import account
from secateur.recovery.task import Task, teacher_of
from secateur.report.schema.agreement import AgreementFigures
from secateur.report.schema.figures import Figures
from secateur.report.schema.recovery import RecoveryFacts
from secateur.report.schema.report import Evaluation, Measured
from secateur.workspace.folder import UNTRAINED, Area, Workspace


def original_of(folder: Path, task: Task, notes: list[str]) -> Path | None:
    """The dense model, if it's still where the pruned folder's report says, or where --teacher does."""
    named, digest = (str(task.teacher.path), None) if task.teacher is not None else teacher_of(folder)
    if named is None or (not Path(named).is_dir() and named != "embedded"):
        return None
    path = plain_folder(local_folder(named))
    if digest is not None and Checkpoint.open(path).digest != digest:
        notes.append(f"{named} has changed since the model was pruned from it: the original isn't shown")
        return None
    return path


@dataclass(frozen=True)
class Wanted:
    """What is measured of a recovery: text (None = what isn't trained on, or `none`), speed, tasks."""

    evaluate: str | None
    speed: bool
    tasks: Asked | None = None


def judged_on_tasks(task: Task, recovered: Path, asked: Asked, found: Measured, notes: list[str]) -> Measured:
    """The original, the pruned and the recovered model on tasks; without the original, the pruned one is `before`."""
    pruned = task.checkpoint.path
    original = original_of(pruned, task, [])
    states = {BEFORE: original or pruned, AFTER: recovered}
    if original is not None:
        states[PRUNED] = pruned
    evaluation = found.get("evaluation")
    texts = None if evaluation is None else (evaluation["before"], evaluation["after"])
    judged = judge(states, asked, (str(task.device), "auto"), texts)
    notes += judged["notes"]
    return {"tasks": judged}


def measured(
    task: Task,
    recovered: Path,
    section: RecoveryFacts,
    workspace: Workspace,
    wanted: Wanted,
    notes: list[str],
) -> Measured:
    """The original, the pruned and the recovered model on the same text; `section` gets a row for each."""
    pruned = task.checkpoint.path
    original = original_of(pruned, task, notes)
    data, name = _evaluation_text(task, workspace, wanted.evaluate)
    if task.asking.head is not None:
        return _agreed(task, recovered, original, (data, name), section, notes)
    where = (str(task.device), "auto", None)
    found = measure(recovered, data, original or pruned, *where, wanted.speed)
    rows: list[tuple[str, Figures]] = [("recovered", found)]
    if original is not None:
        rows = [("original", found["reference"]), ("pruned", measure(pruned, data, None, *where, False)), *rows]
    else:
        rows = [("pruned", found["reference"]), *rows]
    notes += found.pop("notes", [])
    before, kl, ratios = found.pop("reference"), found.pop("kl", None), found.pop("ratios", None)
    found["model"], before["model"] = str(workspace.out), str(original or pruned)
    for figures in (figures for _, figures in rows):
        if name != data:
            figures["data"] = name
            (only,) = figures["sets"].values()
            figures["sets"] = {name: {**only, "data": name}}
    section["states"] = [state_figures(state, figures) for state, figures in rows]
    evaluation: Evaluation = {"before": before, "after": found, "kl": kl, "ratios": ratios, "data": name}
    return {"evaluation": evaluation, "samples": account.samples(task, recovered, original, pruned)}


def _agreed(
    task: Task,
    recovered: Path,
    original: Path | None,
    text: tuple[str, str],
    section: RecoveryFacts,
    notes: list[str],
) -> Measured:
    """How far the pruned and the recovered model, which have no perplexity, agree with the original."""
    why: Measured = {"evaluation": None, "not_evaluated": f"a {task.checkpoint.config.model_type} has no perplexity"}
    if original is None:
        return why
    (data, name), found = text, dict[str, dict[str, AgreementFigures]]()
    for state, folder in (("pruned", task.checkpoint.path), ("recovered", recovered)):
        seen = agree(folder, data, original, str(task.device))
        notes += [note for note in seen["notes"] if note not in notes]
        found[state] = seen["agreement"]
        if name != data:
            (only,) = found[state].values()
            found[state] = {name: {**only, "data": name}}
    section["agreement"] = found
    return {**why, "agreement": found["recovered"]}


def _evaluation_text(task: Task, workspace: Workspace, evaluate: str | None) -> tuple[str, str]:
    """What to measure on, and its name."""
    source = str(task.recovery.data)
    if evaluate is not None:
        return evaluate, evaluate
    if source.startswith("stdlib"):
        return source, f"{source}, files held out"
    return str(write_untrained(task, workspace)), f"{source}, sequences not trained on"


def write_untrained(task: Task, area: Area) -> Path:
    """A file of the sequences that are left for the report."""
    file = area.work / UNTRAINED
    rows = (json.dumps({"input_ids": row}) for row in task.text.reported.documents())
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file
