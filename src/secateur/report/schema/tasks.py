"""What is measured of a model on tasks: `eval --tasks --json`, and the report's section `tasks`."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict


class MetricFigures(TypedDict):
    """Of one metric: its value and the standard error of that; None of a single item."""

    value: float
    stderr: float | None


class TaskFigures(TypedDict):
    """Of one task. `chance`: accuracy of a blind guess, None where there is none; `tokens`: that went through the
    model; `metric`: the one that stands for the task."""

    data: str
    data_sha256: str | None
    form: str
    items: int
    metric: str
    chance: float | None
    metrics: dict[str, MetricFigures]
    tokens: int
    seconds: float


class Difference(TypedDict):
    """Of one metric: this model minus the reference on the same items. `better` and `worse` count items; `p` is of
    the exact sign test over them, which is McNemar's test where an item is right or wrong."""

    difference: float
    stderr: float | None
    better: int
    worse: int
    p: float


class Suffered(TypedDict):
    """What became of a task or a text: `loss` is the part of the original's lead over chance that is gone, `low` and
    `high` its 95 % interval. Chance is a blind guess, of a text every token alike. None where it isn't known, or
    where the original is no better than chance."""

    name: str
    kind: str
    metric: str
    before: float
    after: float
    loss: float | None
    low: float | None
    high: float | None
    p: float | None


class JudgedOnTasks(TypedDict):
    """The section `tasks` of report.json: figures by task, before and after, and before a training that came between;
    `differences` of after and before by task and metric; `suffered` with what lost most first."""

    before: dict[str, TaskFigures]
    pruned: NotRequired[dict[str, TaskFigures]]
    after: dict[str, TaskFigures]
    differences: dict[str, dict[str, Difference]]
    suffered: list[Suffered]
    notes: list[str]


class TasksMeasured(TypedDict):
    """Of one model: its tasks by name."""

    model: str
    device: str
    dtype: str
    threads: int
    tasks: dict[str, TaskFigures]


class TasksEvaluated(TasksMeasured):
    """`eval --tasks --json`; the last two with `--against`: `differences` by task and metric, where both models were
    measured item by item."""

    notes: list[str]
    reference: NotRequired[TasksMeasured]
    differences: NotRequired[dict[str, dict[str, Difference]]]
