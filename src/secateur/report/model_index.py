"""A run's own evaluation as the hub's `model-index`: losses on each text, metrics of each task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from secateur.report import facts
from secateur.report import numbers as fmt
from secateur.report.facts import Report

Entry = dict[str, Any]
_LOSSES = (("perplexity", "Perplexity"), ("bits_per_byte", "Bits per byte"))


def model_index(report: Report) -> list[Entry]:
    """The value of `model-index`; empty where nothing was measured."""
    results = [*_texts(report), *_tasks(report)]
    return [{"name": f"{_clean(facts.title(report))}, pruned", "results": results}] if results else []


def _texts(report: Report) -> list[Entry]:
    after = facts.section(report, "evaluation", "after")
    sets = facts.section(after, "sets") or {fmt.text(facts.section(report, "evaluation").get("data")): after}
    return [
        found
        for name, figures in sets.items()
        if isinstance(figures, Mapping)
        and (found := _result(name, figures, [_metric(key, name, figures.get(key)) for key, name in _LOSSES]))
    ]


def _tasks(report: Report) -> list[Entry]:
    entries = []
    for name, figures in facts.section(report, "tasks", "after").items():
        metrics = facts.section(figures, "metrics")
        found = [_metric(metric, metric, facts.section(metrics, metric).get("value")) for metric in metrics]
        if entry := _result(name, figures, found):
            entries.append(entry)
    return entries


def _metric(kind: str, name: str, value: Any) -> Entry | None:
    return {"type": kind, "name": name, "value": round(float(value), 6)} if fmt.is_number(value) else None


def _clean(name: str) -> str:
    """A name on one line that no reader of the header could take for markup."""
    return " ".join(re.sub(r"[<>&]", "", name).split()) or fmt.MISSING


def _result(name: str, figures: Mapping[str, Any], metrics: list[Entry | None]) -> Entry | None:
    """One text or task. The hub wants a type beside its name, which is the same: our texts are files."""
    found = [metric for metric in metrics if metric is not None]
    about = {"sha256": figures.get("data_sha256"), "tokens": figures.get("tokens"), "items": figures.get("items")}
    args = {key: value for key, value in about.items() if value is not None}
    dataset = {"type": _clean(name), "name": _clean(name), **({"args": args} if args else {})}
    return {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": found} if found else None
