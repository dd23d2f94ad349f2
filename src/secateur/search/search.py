"""`secateur search`: from wishes to a model that keeps them, or to the Pareto front."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import torch

from secateur._version import __version__
from secateur.config.searching import HIDDEN, SearchSettings
from secateur.config.wishes import SECONDS
from secateur.errors import InputError
from secateur.model.hub import local_folder
from secateur.report.html.search import search_page
from secateur.report.schema.search import HiddenFacts, SearchReport
from secateur.search.compared import best_of, best_of_forms
from secateur.search.find import find, stages
from secateur.search.hidden import check, with_hidden
from secateur.search.make import Made, make
from secateur.search.planned import plan_of
from secateur.search.prepared import fingerprint, opened
from secateur.search.programme import scipy_optimize
from secateur.search.space import Candidate
from secateur.search.told import told
from secateur.system.device import resolve_device
from secateur.system.monitor import Monitor
from secateur.system.names import HERE, PLACES, RAY
from secateur.system.on_ray import OnRay
from secateur.system.on_ray import cluster as connected
from secateur.workspace.folder import EVENTS, LEVELS, MARK, Workspace
from secateur.workspace.journal import Journal
from secateur.workspace.ownership import names_for_report

SEARCH, PAGE = "search.json", "search.html"


def search(
    settings: SearchSettings,
    out: str | Path,
    *,
    on: str = HERE,
    ray_address: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
) -> SearchReport:
    """Finds what to cut so that a model keeps some limits and loses least, and makes that model.

    Every kind of site is scored, cut and refitted at several levels in one pass; each piece is measured alone; an
    integer programme puts pieces together, what it finds is measured and corrects it. The best candidate goes through
    `prune` as a plan. Without wishes the Pareto front is written: a plan for each point, and no model.

    Args:
        settings: the model, the wishes, and the settings of the prune, from `make_search` or `load_search`.
        out: a new or empty folder: the result of a prune, with search.json beside it.
        on: where candidates are measured. `here`: in this process. `ray`: as tasks of a Ray cluster (extra `ray`),
            each with as many threads as this process has, and a GPU where it has one; they must see `out`.
        ray_address: of the cluster; None: the cores and GPUs of this machine.
        overwrite: an earlier result in `out` may be replaced.
        resume: go on with the interrupted search in `out`; wishes, trials and minutes may be others than before.
        quiet: no progress display.

    Returns:
        What search.json holds.

    Raises:
        InputError: wishes that nothing keeps, no Ray, and whatever `prune` refuses.
        ResourceError: scipy isn't installed, or Ray lost a task each time it was begun.
    """
    scipy_optimize()
    if on not in PLACES:
        raise InputError(f"on {on}: give one of {', '.join(PLACES)}")
    if ray_address is not None and on != RAY:
        raise InputError(f"ray_address {ray_address} is for a search on ray; say so, or leave it out")
    if on == RAY and HIDDEN in settings.sites:
        raise InputError("hidden dimensions are searched in one process; leave out ray, or site hidden")
    if on == RAY and settings.form:
        raise InputError(f"{settings.form} is searched in one process; leave out ray, or {settings.form}")
    device = resolve_device(settings.device)
    if settings.zeros and device.type != "cpu" and any(wish.about in SECONDS for wish in settings.wishes):
        raise InputError(f"seconds without zeros are of a CPU, and device is {device}; give --device cpu")
    cluster = OnRay(ray_address, torch.get_num_threads(), float(device.type == "cuda")) if on == RAY else None
    with ExitStack() as stack:
        workspace = Workspace(out, overwrite, resume, [local_folder(settings.model)])
        if cluster is not None:
            stack.enter_context(connected(cluster))
        monitor = stack.enter_context(Monitor(device, quiet, stages(settings, cluster)))
        inputs, kinds = opened(settings, device, monitor)
        check(settings, inputs)
        stack.enter_context(workspace.open())
        journal = Journal(workspace.work, fingerprint(settings, inputs))
        monitor.record(workspace.work / EVENTS, resumed=journal.begin(workspace.resume))
        hidden: list[HiddenFacts] = []
        if HIDDEN in settings.sites:
            found, hidden = with_hidden(settings, inputs, kinds, workspace, monitor, journal)
        else:
            found = find(settings, inputs, kinds, workspace, monitor, journal, cluster)
        made, compared = None, dict[Candidate, float]()
        if found.finalists:
            made, compared = best_of(settings, inputs, found, workspace, quiet)
        elif found.others:
            found, made = best_of_forms(settings, inputs, found, workspace, quiet)
        elif settings.wishes:
            made = make(settings, inputs, found, workspace, quiet)
        front = () if made is not None else sorted(found.front, key=lambda one: -found.measures.left("params", one))
        plans = {candidate: f"plan-{number:02d}.json" for number, candidate in enumerate(front, 1)}
        for candidate, name in plans.items():
            plan = plan_of(inputs, candidate, workspace.work / LEVELS)
            (workspace.final / name).write_text(plan.to_json(), encoding="utf-8")
        document = told(settings, inputs, found, made, plans, compared, hidden, monitor)
        _write(workspace, document, made, Path(out))
        return document


def _write(workspace: Workspace, document: SearchReport, made: Made | None, out: Path) -> None:
    """Delivers what the search has found, beside the model that was made of it."""
    report = {"secateur": __version__} if made is None else _taken_over(workspace, made, out)
    events = workspace.work / EVENTS, workspace.final / EVENTS
    texts = [file.read_text(encoding="utf-8") for file in events if file.is_file()]
    events[1].write_text("".join(texts), encoding="utf-8")
    (workspace.final / SEARCH).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (workspace.final / PAGE).write_text(search_page(document), encoding="utf-8")
    mark = {**report, "files": names_for_report(workspace.final)}
    (workspace.final / MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
    workspace.deliver()


def _taken_over(workspace: Workspace, made: Made, out: Path) -> dict[str, object]:
    """Moves a finished prune into `final`, with the folder's name as it will be; gives its report."""
    for path in list(made.folder.iterdir()):
        path.rename(workspace.final / path.name)
    for name in (MARK, "report.html", "README.md"):
        file = workspace.final / name
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(str(made.folder), str(out)), encoding="utf-8")
    report: dict[str, object] = json.loads((workspace.final / MARK).read_text(encoding="utf-8"))
    return report
