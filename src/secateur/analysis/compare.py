"""`secateur compare`: several results side by side, from what their reports say. Nothing is measured anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import InputError
from secateur.model.json_files import read_object
from secateur.report import numbers as fmt
from secateur.report.compared import METRICS
from secateur.report.facts import items, samples, section
from secateur.report.schema.compare import ComparedResult, Comparison, Measure, SamePrompt

MOST_BYTES = 2**28
REPORT, BENCH = "report.json", "bench.json"
KINDS = {"perplexity": "quality", "bits_per_byte": "quality", "peak_memory_bytes": "memory"}
MEAN = "mean accuracy"
ACCURACIES = ("acc", "exact_match")


@dataclass
class Side:
    """What is known of one result: a value and perhaps a standard error for each measure."""

    name: str
    source: str
    values: dict[str, float] = field(default_factory=dict)
    stderr: dict[str, float] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    reference: bool = False

    def put(self, measure: Measure, value: Any, stderr: Any = None) -> None:
        if fmt.is_number(value):
            self.values[measure["key"]] = float(value)
            self.measures[measure["key"]] = measure
            if fmt.is_number(stderr):
                self.stderr[measure["key"]] = float(stderr)


def compare(outs: Sequence[str | Path], against: str | Path | None = None) -> Comparison:
    """Puts results beside each other.

    Args:
        outs: output folders of prune, recover or bench, or their report.json or bench.json.
        against: the reference: another result, or the model that these were pruned from, of which their reports know.

    Returns:
        results, measures (in which they are compared), recipes (settings that differ), samples (the same prompts),
        notes.

    Raises:
        InputError: what is no result, or a reference that no report knows.
    """
    reports = [(str(out), read_result(Path(out))) for out in outs]
    sides = [side for out, report in reports for side in _sides(out, report)]
    if against is not None:
        sides = [*_reference(str(against), reports), *sides]
    _tell_apart(sides)
    measures: dict[str, Measure] = {}
    for side in sides:
        measures |= {key: measure for key, measure in side.measures.items() if key not in measures}
    ordered = sorted(measures.values(), key=lambda m: ("quality", "size", "speed", "memory").index(m["kind"]))
    judged = _judged_by(sides, ordered)
    results: list[ComparedResult] = [
        {
            "name": side.name,
            "source": side.source,
            "reference": side.reference,
            "values": side.values,
            "stderr": side.stderr,
            "pareto": _pareto(side, sides, judged),
        }
        for side in sides
    ]
    return {
        "results": results,
        "measures": ordered,
        "judged_by": [measure["key"] for measure in judged],
        "recipes": _recipes(sides),
        "samples": _samples(sides),
        "notes": _notes(sides, ordered),
    }


def read_result(path: Path) -> Mapping[str, Any]:
    """The report of a result, or its bench.json."""
    files = [path] if path.is_file() else [path / REPORT, path / BENCH]
    for file in files:
        if file.is_file():
            found = read_object(file, most_bytes=MOST_BYTES)
            if {"forms", "recipe", "recovery", "evaluation", "compression"} & set(found):
                return found
    known = f"{REPORT} or {BENCH}"
    raise InputError(f"{path}: no result; give a folder of prune, recover, compress or bench, or its {known}")


def _sides(out: str, report: Mapping[str, Any]) -> Iterator[Side]:
    """The result of a report, or every form of a bench."""
    if "forms" in report:
        yield from _forms(out, report)
        return
    side = Side(out, out, recipe=section(report, "recipe"))
    _figures(side, section(report, "evaluation", "after"))
    parameters = section(report, "parameters")
    _sizes(side, parameters, "after")
    _tasks(side, section(report, "tasks", "after"))
    packed = section(report, "compression").get("bytes_after")
    side.put(_measure("bytes_on_disk", "Size on disk", "size", -1), packed)
    side.texts = {sample.prompt: sample.after for sample in samples(report)}
    yield side


def _figures(side: Side, figures: Mapping[str, Any]) -> None:
    for name, one in section(figures, "sets").items():
        of = section({"of": one}, "of")
        key = f"perplexity, {name}"
        side.put(_measure(f"{key} {str(of.get('data_sha256'))[:12]}", key, "quality", -1), of.get("perplexity"))
    for metric in METRICS[2:]:
        kind = KINDS.get(metric.key, "speed" if metric.key.endswith("per_s") else "size")
        side.put(_measure(metric.key, metric.label, kind, metric.better), figures.get(metric.key))


def _sizes(side: Side, parameters: Mapping[str, Any], state: str) -> None:
    """Parameter counts, which are known without an evaluation too."""
    for metric, key in (("parameters", state), ("nonzero_parameters", f"nonzero_{state}")):
        if metric not in side.values:
            label = next(m.label for m in METRICS if m.key == metric)
            side.put(_measure(metric, label, "size", -1), parameters.get(key))


def _tasks(side: Side, tasks: Mapping[str, Any]) -> None:
    accuracies = []
    for name in tasks:
        task = section(tasks, name)
        of = f"{str(task.get('data_sha256'))[:12]} {task.get('items')}"
        for metric in section(task, "metrics"):
            found = section(task, "metrics", metric)
            better = -1 if "perplexity" in str(metric) else 1
            label = f"{name}, {metric}"
            side.put(_measure(f"{label} {of}", label, "quality", better), found.get("value"), found.get("stderr"))
        own: Any = section(task, "metrics", str(task.get("metric"))).get("value")
        if task.get("metric") in ACCURACIES and fmt.is_number(own):
            accuracies.append((str(name), float(own)))
    if len(accuracies) > 1:
        names = " ".join(sorted(name for name, _ in accuracies))
        mean = sum(value for _, value in accuracies) / len(accuracies)
        side.put(_measure(f"{MEAN} {names}", f"{MEAN} of {len(accuracies)} tasks", "quality", 1), mean)


def _forms(out: str, bench: Mapping[str, Any]) -> Iterator[Side]:
    for form in items(bench, "forms"):
        side = Side(f"{out}: {form.get('name')}", out)
        for key, label, kind in (
            ("bytes_on_disk", "Size on disk", "size"),
            ("peak_memory_bytes", "Peak memory", "memory"),
        ):
            side.put(_measure(key, label, kind, -1), form.get(key))
        for row in items(form, "rows"):
            told = f"batch {row.get('batch')}, context {row.get('context')}"
            for key, label in (("prefill_tokens_per_s", "Prefill"), ("decode_tokens_per_s", "Decode")):
                side.put(_measure(f"{key} {told}", f"{label}, tokens/s, {told}", "speed", 1), row.get(key))
        yield side


def _measure(key: str, label: str, kind: str, better: int) -> Measure:
    return {"key": key, "label": label, "kind": kind, "better": better}


def _reference(against: str, reports: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Side]:
    """The reference: a result of its own, or what the reports say of the model before."""
    path = Path(against)
    if path.is_file() or any((path / name).is_file() for name in (REPORT, BENCH)):
        sides = list(_sides(against, read_result(path)))
    else:
        side = Side(against, against)
        known = [report for _, report in reports if _same(against, section(report, "model").get("path"))]
        if not known:
            raise InputError(f"--against {against}: none of these results was pruned from it; give another result")
        for report in reversed(known):  # what the first one says counts
            _figures(side, section(report, "evaluation", "before"))
            _tasks(side, section(report, "tasks", "before"))
            _sizes(side, section(report, "parameters"), "before")
            side.texts |= {sample.prompt: sample.before for sample in samples(report)}
        sides = [side]
    for side in sides:
        side.reference = True
    return sides


def _same(one: str, other: Any) -> bool:
    if not isinstance(other, str):
        return False
    try:
        return one == other or Path(one).resolve() == Path(other).resolve()
    except (OSError, ValueError):
        return False


def _tell_apart(sides: list[Side]) -> None:
    """The last parts of the paths where those differ, else the paths."""
    short = [Path(side.name).name or side.name for side in sides]
    for side, name in zip(sides, short, strict=True):
        side.name = name if short.count(name) == 1 else side.name


def _judged_by(sides: Sequence[Side], measures: Sequence[Measure]) -> list[Measure]:
    """One measure of quality, of size and of speed that every result has, where there are some."""
    everywhere = [measure for measure in measures if all(measure["key"] in side.values for side in sides)]
    found = []
    for kind in ("quality", "size", "speed"):
        of = [measure for measure in everywhere if measure["kind"] == kind]
        first = ("mean accuracy", "bytes_on_disk", "decode_tokens_per_s")
        of.sort(key=lambda measure: not measure["key"].startswith(first))
        found += of[:1]
    return found


def _pareto(side: Side, sides: Sequence[Side], judged: Sequence[Measure]) -> bool:
    def own(one: Side) -> list[float]:
        return [measure["better"] * one.values[measure["key"]] for measure in judged]

    mine = own(side)
    others = [own(other) for other in sides if other is not side]
    return bool(judged) and not any(
        all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for other in others
    )


def _recipes(sides: Sequence[Side]) -> dict[str, list[object]]:
    """Settings that aren't the same in every recipe; sections key by key."""
    flat = [dict(_flat(side.recipe)) for side in sides if side.recipe]
    if len(flat) < 2:
        return {}
    keys = dict.fromkeys(key for recipe in flat for key in recipe)
    differing = [key for key in keys if len({repr(recipe.get(key)) for recipe in flat}) > 1]
    return {key: [dict(_flat(side.recipe)).get(key) for side in sides] for key in differing}


def _flat(recipe: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for key, value in recipe.items():
        if key == "recover" and isinstance(value, Mapping):
            yield from ((f"{key}.{name}", part) for name, part in value.items())
        else:
            yield str(key), value


def _samples(sides: Sequence[Side]) -> list[SamePrompt]:
    """Prompts that at least two results, or the only one, went on from."""
    prompts = dict.fromkeys(prompt for side in sides for prompt in side.texts)
    least = min(2, len(sides))
    return [
        {"prompt": prompt, "texts": [side.texts.get(prompt) for side in sides]}
        for prompt in prompts
        if sum(prompt in side.texts for side in sides) >= least
    ]


def _notes(sides: Sequence[Side], measures: Sequence[Measure]) -> list[str]:
    labels = [measure["label"] for measure in measures]
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    notes = [f"{label}: measured on different data in different results; each has a line" for label in twice]
    bare = [side.name for side in sides if not any(side.measures[key]["kind"] == "quality" for key in side.values)]
    return notes + ([f"no figures of quality: {', '.join(bare)}"] if bare else [])
