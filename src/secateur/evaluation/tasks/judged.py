"""Several states of a model on the same tasks: what a run's report says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from secateur.evaluation.loading import Loaded
from secateur.evaluation.tasks.outcome import Outcome, differences
from secateur.evaluation.tasks.run import Asked, measure, opened
from secateur.evaluation.tasks.suffered import suffered
from secateur.report.schema.figures import LossFigures
from secateur.report.schema.tasks import JudgedOnTasks

BEFORE, PRUNED, AFTER = "before", "pruned", "after"


def judge(
    states: Mapping[str, Path],
    asked: Asked,
    where: tuple[str, str],
    texts: tuple[LossFigures, LossFigures] | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> JudgedOnTasks:
    """Measures each state, one in memory at a time.

    Args:
        states: `before`, `after`, and `pruned` where a training came between, each with its folder.
        where: device and dtype.
        texts: what was measured on text, before and after, to be ranked with the tasks.
        step: called after each state.
    """
    found: dict[str, dict[str, Outcome]] = {}
    vocabulary = 0
    for state, folder in states.items():
        loaded = opened(folder, asked, *where)
        vocabulary = _vocabulary(loaded)
        found[state] = measure(loaded, asked, quiet=True)[1]
        del loaded  # before the next one
        step(state)
    figures = {state: {name: one.figures() for name, one in own.items()} for state, own in found.items()}
    between = {name: differences(found[AFTER][name], found[BEFORE][name]) for name in found[AFTER]}
    sets = ({}, {}) if texts is None else (texts[0]["sets"], texts[1]["sets"])
    notes = [f"{name}: {note}" for own in found.values() for name, one in own.items() for note in one.notes]
    judged: JudgedOnTasks = {
        "before": figures[BEFORE],
        "after": figures[AFTER],
        "differences": between,
        "suffered": suffered(figures[BEFORE], figures[AFTER], between, sets, vocabulary),
        "notes": list(dict.fromkeys(notes)),
    }
    return {**judged, "pruned": figures[PRUNED]} if PRUNED in figures else judged


def _vocabulary(loaded: Loaded) -> int:
    return int(loaded.model.config.get_text_config().vocab_size)
