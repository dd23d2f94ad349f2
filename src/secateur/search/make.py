"""From candidates to models: the choice is pruned, repaired and judged; limits of quality choose by what that gave.

How good a candidate is after its repair follows from its divergence: the logarithm of what it loses is taken to be a
multiple of it, and each model that is made tells the multiple anew. So the smallest candidate that should keep all
limits of quality is made and judged, and others where it doesn't, or where a smaller one should.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur.config.configuration import resolve
from secateur.config.plan import Plan
from secateur.config.recipe import Recipe
from secateur.config.searching import HIDDEN, SearchSettings
from secateur.config.wishes import PERPLEXITY, TASK, Wish
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.prune import prune
from secateur.report.schema.report import Report
from secateur.search.found import Found
from secateur.search.planned import plan_of
from secateur.search.space import Candidate
from secateur.workspace.folder import MADE, MARK, WORK, Workspace

PRUNES = 3  # models that are made at most
UNKNOWN = 0.1  # a loss that a limit is taken to allow before anything was judged


@dataclass(frozen=True)
class Made:
    """A candidate as a finished model.

    Args:
        folder: where it lies, in the work area.
    """

    candidate: Candidate
    folder: Path
    report: Report


def make(settings: SearchSettings, inputs: Inputs, found: Found, workspace: Workspace, quiet: bool) -> Made:
    """The model that keeps the wishes best."""

    def made(candidate: Candidate) -> Made:
        return pruned(settings, inputs, found, candidate, workspace, quiet)

    limits = [wish for wish in settings.wishes if not wish.of_cost]
    if found.best is not None or not limits:
        assert found.best is not None
        return made(found.best)
    return smallest(found, limits, made)


def smallest(found: Found, limits: Sequence[Wish], made: Callable[[Candidate], Made]) -> Made:
    """The smallest model that keeps limits of quality, of `PRUNES` that are made; the least harmed if none does."""
    by_size = sorted(found.front, key=lambda candidate: found.measures.left("params", candidate))
    divergence = {one.candidate: one.measured for one in found.tried}
    factors = dict.fromkeys(limits, 1.0)
    allowed = {wish: abs(math.log(wish.amount)) if wish.relative else UNKNOWN for wish in limits}
    done: dict[Candidate, Made] = {}
    for _ in range(PRUNES):
        fits = [c for c in by_size if all(factors[w] * divergence[c] <= allowed[w] for w in limits)]
        choice = fits[0] if fits else min(by_size, key=divergence.__getitem__)
        if choice in done:
            break
        done[choice] = made(choice)
        for wish in limits:
            before, after = judged(wish, done[choice].report)
            if before is None or after is None or before <= 0 or after <= 0:
                continue
            lost = math.log(after / before) * (1 if wish.about == PERPLEXITY else -1)
            factors[wish] = max(lost, 1e-3) / max(divergence[choice], 1e-9)
            if not wish.relative:
                allowed[wish] = max(math.log(wish.amount / before) * (1 if wish.about == PERPLEXITY else -1), 0.0)
    held = [c for c in by_size if c in done and all(kept(wish, done[c].report) for wish in limits)]
    return done[held[0]] if held else done[min(done, key=divergence.__getitem__)]


def judged(wish: Wish, report: Report | None) -> tuple[float | None, float | None]:
    """(before, after) of what a wish about quality is about, as a report has it; after: of an export of a few bits,
    where there is one."""
    if report is None:
        return None, None
    if wish.about == TASK:
        sides: Any = report.get("tasks") or {}
        values = [_right(sides.get(side) or {}, wish.file) for side in ("before", "after")]
        return values[0], values[1]
    found: Any = report.get("evaluation") or {}
    result = "exported" if "exported" in found else "after"
    before, after = ((found.get(side) or {}).get("perplexity") for side in ("before", result))
    return before, after


def kept(wish: Wish, report: Report) -> bool:
    """Whether a model keeps a wish about quality; not, where it wasn't measured."""
    before, after = judged(wish, report)
    return before is not None and after is not None and wish.held(after, before)


def _right(tasks: Any, file: str) -> float | None:
    """The figure that stands for the task of a file."""
    for figures in tasks.values():
        if figures["data"] == file or Path(figures["data"]).name == Path(file).name:
            return float(figures["metrics"][figures["metric"]]["value"])
    return None


def pruned(
    settings: SearchSettings, inputs: Inputs, found: Found, candidate: Candidate, workspace: Workspace, quiet: bool
) -> Made:
    """A candidate as `prune` makes it of its plan; one that an interrupted search had made isn't made again."""
    own = inputs if found.narrow is None else found.narrow.inputs
    zeros, pattern = None, ""
    if found.form is not None:
        settings, zeros = settings.model_copy(update={"export": found.form.export}), found.form.zeros
    if zeros is not None:
        pattern = str(zeros.pattern)
        method = resolve(settings.replaying(("weight",), {"weight": zeros.share}, pattern)).method("weight")
        own = replace(own, rules=zeros.rules(own.rules, method))
    plan = plan_of(own, candidate, workspace.work / found.levels)
    plan = replace(plan, model={**plan.model, "digest": inputs.checkpoint.digest})
    sites, sparsities = plan.sites, plan.sparsities
    if found.narrow is not None:
        sites, sparsities = (HIDDEN, *sites), {HIDDEN: found.narrow.share, **sparsities}
    for streamed in (inputs.streamed, own.streamed):
        streamed.release()
    recipe = settings.replaying(sites, sparsities, pattern)
    folder = workspace.work / MADE / _key(candidate, recipe) / workspace.out.resolve().name
    return Made(candidate, folder, _finished(folder) or _made(recipe, folder, plan, workspace, quiet))


def narrow_folder(settings: SearchSettings, share: float, workspace: Workspace) -> Path:
    """The model with so many fewer hidden dimensions and nothing else gone, made where it isn't there yet."""
    plain = {"evaluate": "none", "speed": False, "explain": False, "tasks": None, "export": None, "prompts": None}
    told = settings.model_copy(update={**plain, "recover": None, "want": ()})
    recipe = told.replaying((HIDDEN,), {HIDDEN: share})
    folder = workspace.work / MADE / _key((), recipe) / "narrow"
    if _finished(folder) is None:
        _made(recipe, folder, None, workspace, True)
    return folder


def _made(recipe: Recipe, folder: Path, plan: Plan | None, workspace: Workspace, quiet: bool) -> Report:
    report = prune(recipe, folder, plan=plan, resume=True, quiet=quiet)
    workspace.worth_keeping()
    return report


def _key(candidate: Candidate, recipe: Recipe) -> str:
    """A name for a candidate with all that decides what becomes of it."""
    told = json.dumps([candidate, recipe.model_dump(mode="json")])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _finished(folder: Path) -> Report | None:
    """The report of a prune that was finished."""
    file = folder / MARK
    if (folder / WORK).exists() or not file.is_file():
        return None
    report: Report = json.loads(file.read_text(encoding="utf-8"))
    return report
