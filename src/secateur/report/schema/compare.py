"""`compare --json`: several results side by side."""

from __future__ import annotations

from typing_extensions import TypedDict


class Measure(TypedDict):
    """A line of the table: `kind` is quality, size, speed or memory; `better` is -1 where lower is better, else 1."""

    key: str
    label: str
    kind: str
    better: int


class ComparedResult(TypedDict):
    """One result. `stderr` where it is known; `pareto`: no other one is as good everywhere and better somewhere."""

    name: str
    source: str
    reference: bool
    values: dict[str, float]
    stderr: dict[str, float]
    pareto: bool


class SamePrompt(TypedDict):
    """A prompt, and how each result goes on from it; None where its report doesn't say."""

    prompt: str
    texts: list[str | None]


class Comparison(TypedDict):
    """`judged_by`: the measures that Pareto marks look at; `recipes`: settings that differ, one value a result."""

    results: list[ComparedResult]
    measures: list[Measure]
    judged_by: list[str]
    recipes: dict[str, list[object]]
    samples: list[SamePrompt]
    notes: list[str]
