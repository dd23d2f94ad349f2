"""What suffered first: tasks and texts by the part of the original's lead over chance that is gone.

An accuracy of 60 % where a guess has 50 % leads by 10 points; 55 % has lost half of that, whatever it is of 100. Of a
text, chance is every token alike: a model leads by ln(vocabulary) minus its nats a token. So both are of one measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from secateur.numerics.paired import SURE
from secateur.report.schema.figures import TextFigures
from secateur.report.schema.tasks import Difference, Suffered, TaskFigures


def suffered(
    before: Mapping[str, TaskFigures],
    after: Mapping[str, TaskFigures],
    differences: Mapping[str, Mapping[str, Difference]],
    texts: tuple[Mapping[str, TextFigures], Mapping[str, TextFigures]] = ({}, {}),
    vocabulary: int = 0,
) -> list[Suffered]:
    """The largest loss first; what can't be ranked last.

    Args:
        before, after: figures by task.
        differences: of after and before, by task and metric.
        texts: figures by text, before and after.
        vocabulary: tokens that the models know.
    """
    rows = [_task(name, before[name], after[name], differences.get(name, {})) for name in before if name in after]
    rows += [_text(name, texts[0][name], texts[1][name], vocabulary) for name in texts[0] if name in texts[1]]
    return sorted(rows, key=lambda row: -row["loss"] if row["loss"] is not None else math.inf)


def _task(name: str, before: TaskFigures, after: TaskFigures, differences: Mapping[str, Difference]) -> Suffered:
    metric = before["metric"]
    was, now = before["metrics"][metric], after["metrics"][metric]
    between, chance = differences.get(metric), before["chance"] or 0.0
    return {
        **_row(
            (name, "task", metric),
            (was["value"], now["value"]),
            (was["value"] - chance, was["stderr"]),
            (was["value"] - now["value"], None if between is None else between["stderr"]),
        ),
        "p": None if between is None else between["p"],
    }


def _text(name: str, before: TextFigures, after: TextFigures, vocabulary: int) -> Suffered:
    was, now = before["perplexity"], after["perplexity"]
    known = vocabulary > 1 and 0 < was < math.inf and 0 < now < math.inf
    lead = math.log(vocabulary) - math.log(was) if known else 0.0
    lost = math.log(now / was) if known else 0.0
    return _row((name, "text", "perplexity"), (was, now), (lead, None), (lost, after.get("difference_stderr")))


def _row(
    what: tuple[str, str, str],
    values: tuple[float, float],
    lead: tuple[float, float | None],
    lost: tuple[float, float | None],
) -> Suffered:
    """A row with its loss and interval, to first order; both `lead` and `lost` are (value, standard error)."""
    found: Suffered = {
        "name": what[0],
        "kind": what[1],
        "metric": what[2],
        "before": values[0],
        "after": values[1],
        "loss": None,
        "low": None,
        "high": None,
        "p": None,
    }
    if lead[0] <= SURE * (lead[1] or 0.0) or lead[0] <= 0:
        return found  # no better than chance: there's nothing to lose
    share = lost[0] / lead[0]
    found["loss"] = share
    if lost[1] is not None:
        error = math.hypot(lost[1], share * (lead[1] or 0.0)) / lead[0]
        found["low"], found["high"] = share - SURE * error, share + SURE * error
    return found
