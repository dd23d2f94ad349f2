"""`secateur search`: from wishes to a model that keeps them, or to the Pareto front."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from secateur.config.searching import SearchSettings
from secateur.errors import InputError
from secateur.model.hub import local_folder
from secateur.pipeline.inputs import Inputs, memory_for
from secateur.pipeline.prune import prune
from secateur.report.schema.report import Report
from secateur.report.schema.search import SearchReport
from secateur.search.levels import write_pieces
from secateur.search.planned import plan_of
from secateur.search.predict import Costs, costs_of, measured_pieces
from secateur.search.prepared import Remembered, clock, fingerprint, job_of, opened
from secateur.search.programme import scipy_optimize
from secateur.search.refine import Tried, refined
from secateur.search.space import Candidate, Space, space_of
from secateur.search.told import told
from secateur.search.trial import Trials
from secateur.search.wanted import Measures, limits_of, measures_of
from secateur.system.device import resolve_device
from secateur.system.monitor import Monitor
from secateur.workspace.folder import EVENTS, LEVELS, MADE, MARK, WORK, Workspace
from secateur.workspace.journal import Journal
from secateur.workspace.ownership import discard, names_for_report

SEARCH, PAGE = "search.json", "search.html"
CHOSEN = "chosen"  # in the journal


def search(
    settings: SearchSettings,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
) -> SearchReport:
    """Finds what to cut so that a model keeps some limits and loses least, and makes that model.

    Every kind of site is scored, cut and refitted at several levels in one pass; each piece is measured alone; an
    integer programme puts pieces together, what it finds is measured and corrects it. The best candidate goes through
    `prune` as a plan.

    Args:
        settings: the model, the wishes, and the settings of the prune, from `make_search` or `load_search`.
        out: a new or empty folder: the result of a prune, with search.json beside it.
        overwrite: an earlier result in `out` may be replaced.
        resume: go on with the interrupted search in `out`; wishes, trials and minutes may be others than before.
        quiet: no progress display.

    Returns:
        What search.json holds.

    Raises:
        InputError: a wish that nothing keeps, and whatever `prune` refuses.
        ResourceError: scipy isn't installed.
    """
    scipy_optimize()
    if not settings.wishes:
        raise InputError("no wish given; add --want params=0.75x")
    device = resolve_device(settings.device)
    with ExitStack() as stack:
        workspace = Workspace(out, overwrite, resume, [local_folder(settings.model)])
        monitor = stack.enter_context(Monitor(device, quiet, _stages()))
        inputs, kinds = opened(settings, device, monitor)
        stack.enter_context(workspace.open())
        journal = Journal(workspace.work, fingerprint(settings, inputs))
        monitor.record(workspace.work / EVENTS, resumed=journal.begin(workspace.resume))
        found = _searched(settings, inputs, kinds, workspace, monitor, journal)
        report = _made(settings, inputs, found, workspace, journal, quiet)
        about = (found.space, found.measures, found.costs, found.tried, found.best)
        document = told(settings, inputs, *about, {found.best: "plan.json"}, report, monitor)
        _write(workspace, document, Path(out))
        return document


@dataclass(frozen=True)
class Found:
    """What a search has come to."""

    space: Space
    measures: Measures
    costs: Costs
    tried: tuple[Tried, ...]

    @property
    def best(self) -> Candidate:
        """The candidate that was measured to lose least."""
        return min(self.tried, key=lambda one: one.measured).candidate


def _stages() -> list[str]:
    return ["calibration text", "open", "cut levels", "untouched model", "each piece alone", "candidates"]


def _searched(
    settings: SearchSettings,
    inputs: Inputs,
    kinds: frozenset[str],
    workspace: Workspace,
    monitor: Monitor,
    journal: Journal,
) -> Found:
    """Everything up to the choice."""
    memory, levels, over = memory_for(inputs.config), workspace.work / LEVELS, clock(settings.minutes)
    job = job_of(inputs, monitor, memory, workspace.work)
    space = space_of(job, kinds)
    measures = measures_of(space, inputs.streamed)
    limits = limits_of(settings.wishes, measures, space)
    with monitor.stage("cut levels", inputs.checkpoint.layers) as step:
        write_pieces(job._replace(step=step), space, levels)
        workspace.worth_keeping()
    with ExitStack() as stack:
        with monitor.stage("untouched model", inputs.checkpoint.layers) as step:
            trials = stack.enter_context(Trials.of(job._replace(step=step), levels, workspace.work))
        evaluate = Remembered.of(trials.evaluate, journal)
        with monitor.stage("each piece alone", len(measured_pieces(space))) as step:
            costs = costs_of(space, evaluate, step)
        with monitor.stage("candidates", settings.trials) as step:
            tried = []
            for one in refined(space, costs, limits, evaluate, settings.trials, settings.seed, over):
                tried.append(one)
                step(f"KL {one.measured:.4g}")
    if not tried:
        raise InputError(f"wishes {', '.join(settings.want)}: nothing keeps all of them at once; ask for less")
    return Found(space, measures, costs, tuple(tried))


def _made(
    settings: SearchSettings, inputs: Inputs, found: Found, workspace: Workspace, journal: Journal, quiet: bool
) -> Report:
    """The choice as `prune` makes it of its plan, in `final`."""
    plan = plan_of(inputs, found.best, workspace.work / LEVELS)
    inputs.streamed.release()
    made = workspace.work / MADE
    chosen = json.loads(json.dumps(found.best))
    if journal.noted(CHOSEN) != chosen:
        discard(made)
        journal.note(CHOSEN, chosen)
    folder = made / workspace.out.resolve().name
    report = _finished(folder)
    if report is None:
        recipe = settings.replaying(plan.sites, plan.sparsities)
        report = prune(recipe, folder, plan=plan, resume=True, quiet=quiet)
    return report


def _finished(folder: Path) -> Report | None:
    """The report of a prune that an interrupted search had finished."""
    file = folder / MARK
    if (folder / WORK).exists() or not file.is_file():
        return None
    report: Report = json.loads(file.read_text(encoding="utf-8"))
    return report


def _write(workspace: Workspace, document: SearchReport, out: Path) -> None:
    """Delivers the pruned model with what the search has found beside it."""
    folder = workspace.work / MADE / workspace.out.resolve().name
    for path in list(folder.iterdir()):
        path.rename(workspace.final / path.name)
    for name in (MARK, "report.html", "README.md"):
        file = workspace.final / name
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(str(folder), str(out)), encoding="utf-8")
    events = [folder / EVENTS for folder in (workspace.work, workspace.final)]
    events[1].write_text("".join(file.read_text(encoding="utf-8") for file in events), encoding="utf-8")
    (workspace.final / SEARCH).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    report = json.loads((workspace.final / MARK).read_text(encoding="utf-8"))
    report["files"] = names_for_report(workspace.final)
    (workspace.final / MARK).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    workspace.deliver()
