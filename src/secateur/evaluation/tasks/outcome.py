"""What became of each item of a task, and the figures that it adds up to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secateur.numerics.paired import mean, paired, standard_error
from secateur.report.schema.tasks import Difference, MetricFigures, TaskFigures

PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class Outcome:
    """One model on one task.

    items    metric -> a figure for each item: 1 or 0 for right or wrong; for `perplexity` the item's log-likelihood
             in nats
    metric   the one that stands for the task
    chance   accuracy of a blind guess; None where there is none
    ready    figures that came ready from elsewhere, beside those of `items`
    """

    items: Mapping[str, Sequence[float]]
    metric: str
    chance: float | None
    form: str
    data: str
    data_sha256: str | None
    tokens: int
    seconds: float
    notes: tuple[str, ...] = ()
    ready: Mapping[str, MetricFigures] | None = None
    count: int | None = None

    def figures(self) -> TaskFigures:
        own = {name: figures_of(name, values) for name, values in self.items.items()}
        return {
            "data": self.data,
            "data_sha256": self.data_sha256,
            "form": self.form,
            "items": self.count if self.count is not None else len(next(iter(self.items.values()))),
            "metric": self.metric,
            "chance": self.chance,
            "metrics": {**(self.ready or {}), **own},
            "tokens": self.tokens,
            "seconds": self.seconds,
        }


def figures_of(name: str, values: Sequence[float]) -> MetricFigures:
    """The mean with its standard error; of log-likelihoods exp(-mean), whose error is to first order."""
    centre, error = mean(values), standard_error(values)
    if name != PERPLEXITY:
        return {"value": centre, "stderr": error}
    power = math.exp(-centre) if centre > -700 else math.inf
    return {"value": power, "stderr": None if error is None else power * error}


def differences(own: Outcome, reference: Outcome) -> dict[str, Difference]:
    """By metric, of what both were measured on item by item; of `perplexity` the items' log-likelihoods differ."""
    found: dict[str, Difference] = {}
    for name, values in own.items.items():
        if len(reference.items.get(name, ())) == len(values):
            both = paired(values, reference.items[name])
            found[name] = {
                "difference": both.difference,
                "stderr": both.stderr,
                "better": both.better,
                "worse": both.worse,
                "p": both.p,
            }
    return found
