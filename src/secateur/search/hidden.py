"""Hidden dimensions: one choice for the whole model, so each level of them is a model with a search of its own.

A level is made as `prune` makes it, and is measured alone first. Where that loses more already than the best
candidate so far, neither this level nor the ones after it are looked at: whatever goes besides only adds to it. What
the candidates of a level lose is measured against the untouched model; the sum over their pieces begins with what the
level loses alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from secateur.allocation.job import Job
from secateur.config.configuration import resolve
from secateur.config.searching import HIDDEN, SearchSettings
from secateur.cut.counts import kept_dimensions
from secateur.errors import InputError
from secateur.model.rotation import check_rotatable
from secateur.pipeline.inputs import Inputs, memory_for
from secateur.report.schema.search import HiddenFacts
from secateur.search.find import find
from secateur.search.found import Found, Narrow
from secateur.search.make import narrow_folder
from secateur.search.prepared import Remembered, job_of, one_by_one, opened
from secateur.search.space import space_of
from secateur.search.trial import Against, Trials
from secateur.search.wanted import Measures, measures_of
from secateur.system.monitor import Monitor
from secateur.workspace.folder import LEVELS, Workspace
from secateur.workspace.journal import Journal

LEVELS_OF_HIDDEN = (0.125, 0.25)  # shares of the dimensions


@dataclass(frozen=True)
class Level:
    """A level: how many dimensions stay, the share that goes, and the recipe's key for it."""

    kept: int
    units: int
    share: float


def check(settings: SearchSettings, inputs: Inputs) -> None:
    """Refuses models without a basis that could be another one.

    Raises:
        InputError, UnsupportedModelError: as `prune` does.
    """
    if HIDDEN in settings.sites:
        check_rotatable(inputs.checkpoint)


def with_hidden(
    settings: SearchSettings,
    inputs: Inputs,
    kinds: frozenset[str],
    workspace: Workspace,
    monitor: Monitor,
    journal: Journal,
) -> tuple[Found, list[HiddenFacts]]:
    """The best of what is found with all hidden dimensions and with fewer; and what came of each level of them.

    Raises:
        InputError: what `find` refuses, where no level of hidden dimensions helps either.
    """
    best, refused = None, None
    try:
        best = find(settings, inputs, kinds, workspace, monitor, journal)
    except InputError as error:
        refused = error
    job, facts = _job(inputs, workspace, monitor), list[HiddenFacts]()
    untouched = measures_of(space_of(job, kinds), inputs.streamed)
    with Trials.of(job, workspace.work / LEVELS, workspace.work) as dense:
        against = Against(inputs.streamed, dense.before[-1])
        for level in levels(settings, inputs):
            with monitor.stage(f"{level.kept} hidden dimensions"):
                folder = narrow_folder(settings, level.share, workspace)
            narrow = _opened(settings, inputs, level, folder, against, untouched)
            alone = _alone(narrow, workspace, monitor, journal)
            facts.append({"kept": level.kept, "units": level.units, "kl": alone, "best": None, "chosen": False})
            if best is not None and alone >= best.divergence:
                break
            monitor.prefix = f"{level.kept} hidden dimensions, "
            try:
                other = find(settings, narrow.inputs, narrow.kinds, workspace, monitor, journal, narrow=narrow)
            except InputError:  # nothing of this level keeps the wishes
                continue
            finally:
                monitor.prefix = ""
            facts[-1]["best"] = other.divergence
            best = other if best is None or other.divergence < best.divergence else best
    if best is None:
        assert refused is not None
        raise refused
    for fact in facts:
        fact["chosen"] = best.narrow is not None and best.narrow.kept == fact["kept"]
    return best, facts


def _job(inputs: Inputs, workspace: Workspace, monitor: Monitor) -> Job:
    return job_of(inputs, monitor, memory_for(inputs.config, inputs.streamed.device), workspace.work)


def levels(settings: SearchSettings, inputs: Inputs) -> Iterator[Level]:
    """Those that the model's width has, the smallest cut first."""
    units, seen = int(inputs.checkpoint.config.hidden_size), set[int]()
    for share in LEVELS_OF_HIDDEN:
        recipe = settings.replaying((HIDDEN,), {HIDDEN: share})
        kept = kept_dimensions(resolve(recipe), inputs.checkpoint)
        if kept < units and kept not in seen:
            seen.add(kept)
            yield Level(kept, units, share)


def _opened(
    settings: SearchSettings, inputs: Inputs, level: Level, folder: Path, against: Against, untouched: Measures
) -> Narrow:
    """The model with fewer dimensions, on the same text."""
    own, device = settings.model_copy(update={"model": str(folder)}), inputs.streamed.device
    narrow, kinds = opened(own, device, Monitor(device, True))
    narrow = replace(narrow, calibration=inputs.calibration)
    return Narrow(narrow, kinds, level.kept, level.share, against, untouched)


def _alone(narrow: Narrow, workspace: Workspace, monitor: Monitor, journal: Journal) -> float:
    """What a level loses with nothing else gone."""
    job = _job(narrow.inputs, workspace, monitor)
    with Trials.of(job, workspace.work, workspace.work, narrow.against) as trials:
        [kl] = Remembered.of(one_by_one(trials.evaluate), journal, narrow.key)([()])
    return kl
