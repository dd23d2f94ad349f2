"""`secateur eval --tasks`: models on tasks, alone or against another one, item by item."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from secateur.data.items import Choice, Continuation, Labelled, Question, Tagged, pairs_of
from secateur.data.sources import split_specs
from secateur.data.tasks import TaskFile, is_file, read_task
from secateur.errors import InputError
from secateur.evaluation.loading import Loaded, load
from secateur.evaluation.tasks.answers import answers, is_right
from secateur.evaluation.tasks.encode import Pair, encode_pairs
from secateur.evaluation.tasks.harness import harness_outcomes, open_tasks
from secateur.evaluation.tasks.labels import classify, numbers_of, tag
from secateur.evaluation.tasks.likelihood import Likelihood, log_likelihoods
from secateur.evaluation.tasks.outcome import PERPLEXITY, Outcome, differences
from secateur.evaluation.windows import LONGEST, context_length
from secateur.model.files import read_config
from secateur.model.heads import SEQUENCE, TOKEN, head_of
from secateur.model.hub import local_folder
from secateur.numerics.f1 import macro_f1
from secateur.report.schema.tasks import MetricFigures, TasksEvaluated, TasksMeasured
from secateur.system.device import dtype_name
from secateur.system.display import display

ACC, ACC_NORM, EXACT, F1 = "acc", "acc_norm", "exact_match", "f1"


def evaluate_tasks(
    model_dir: str | Path,
    tasks: str,
    against: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    limit: int | None = None,
    shots: int | None = None,
    include_path: str | None = None,
    quiet: bool = True,
) -> TasksEvaluated:
    """Measure a model on tasks.

    Args:
        tasks: files of items (see `data.tasks`) and names that lm-eval knows, with commas.
        against: a reference model, measured on the same items afterwards.
        limit: only the first items of each task.
        shots: examples before each question; for lm-eval's tasks, since a file has them in its questions or not.
        include_path: a folder of task files of lm-eval's, beside its own.

    Returns:
        model, device, dtype, threads, tasks (figures by name), notes; with `against` also reference (the same of the
        other model) and differences (by task and metric, paired item by item).

    Raises:
        InputError: tasks or models that can't be used; task files are read before any model.
    """
    asked = ask(tasks, limit, shots, include_path)
    sides = [model_dir, *([against] if against is not None else [])]
    with display("evaluate", quiet):
        measured = [measure(opened(side, asked, device, dtype), asked, quiet) for side in sides]
    notes = [f"{name}: {note}" for one in measured for name, outcome in one[1].items() for note in outcome.notes]
    result: TasksEvaluated = {**measured[0][0], "notes": list(dict.fromkeys(notes))}
    if against is not None:
        (_, own), (other, reference) = measured
        result["reference"] = other
        result["differences"] = {name: differences(own[name], reference[name]) for name in own}
    return result


@dataclass(frozen=True)
class Asked:
    """Tasks that are ready to be measured: files, read, and those that lm-eval knows by name."""

    files: Mapping[str, TaskFile]
    names: tuple[str, ...] = ()
    manager: Any = None
    limit: int | None = None
    shots: int | None = None


def ask(tasks: str, limit: int | None = None, shots: int | None = None, include_path: str | None = None) -> Asked:
    """Reads a list of tasks with commas; files of one name are told apart by what the user wrote.

    Raises:
        InputError: see `read_task` and `harness.open_tasks`; shots for files.
    """
    specs = split_specs(tasks, "--tasks")
    names = tuple(spec for spec in specs if not is_file(spec))
    if shots is not None and len(names) < len(specs):
        raise InputError("--shots is for lm-eval's tasks; in a file, examples stand in the questions themselves")
    manager = open_tasks(names, include_path) if names else None
    found = [read_task(spec).first(limit) for spec in specs if is_file(spec)]
    stems = [file.name for file in found]
    files = {file.name if stems.count(file.name) == 1 else file.spec: file for file in found}
    return Asked(files, names, manager, limit, shots)


def beside(evaluated: Mapping[str, Any], asked: TasksEvaluated) -> dict[str, Any]:
    """What was measured on tasks beside what was measured on text, if anything: one object."""
    found: dict[str, Any] = {**asked, **evaluated, "notes": [*evaluated.get("notes", ()), *asked["notes"]]}
    if "reference" in asked:
        found["reference"] = {**asked["reference"], **evaluated.get("reference", {})}
    return found


def opened(path: str | Path, asked: Asked, device: str, dtype: str) -> Loaded:
    """The model, with the head that it has.

    Raises:
        InputError: see `check_head`.
    """
    folder = local_folder(path)
    config = read_config(folder)
    check_head(config, path, asked)
    return load(folder, device, dtype, encoders=head_of(config) in (SEQUENCE, TOKEN))


CLASSIFY = {
    "label": (SEQUENCE, "text and label"),
    "tags": (TOKEN, "tokens and labels"),
}  # form of items -> head, rows


def check_head(config: Any, path: str | Path, asked: Asked) -> None:
    """Refuses labels for a model that predicts text, and the other way round.

    Raises:
        InputError: in one line.
    """
    head = head_of(config)
    rows = next((rows for own, rows in CLASSIFY.values() if own is head), None)
    for task in asked.files.values():
        wanted = CLASSIFY.get(task.form)
        if wanted is not None and wanted[0] is not head:
            if head is None or head.tokens:
                raise InputError(f"{task.spec} has labels, and {path} predicts text; give choices and gold")
            instead = "" if rows is None else f"; give rows with {rows}"
            raise InputError(f"{task.spec} asks for {wanted[0].name}, and {path} gives {head.name}{instead}")
        if wanted is None and rows is not None:
            raise InputError(f"{task.spec} asks for text, and {path} classifies; give rows with {rows}")
    if asked.names and rows is not None:
        raise InputError(f"{asked.names[0]} asks for text, and {path} classifies; give a file of rows with {rows}")


def measure(loaded: Loaded, asked: Asked, quiet: bool = True) -> tuple[TasksMeasured, dict[str, Outcome]]:
    """One model on all tasks: its figures, and what became of each item."""
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.path} has no tokenizer, and tasks are text")
    found = {name: outcome_of(loaded, task, quiet) for name, task in asked.files.items()}
    if asked.names:
        found |= harness_outcomes(loaded, asked.manager, asked.names, asked.limit, asked.shots, quiet)
    facts: TasksMeasured = {
        "model": loaded.path,
        "device": str(loaded.device),
        "dtype": dtype_name(loaded.dtype),
        "threads": torch.get_num_threads(),
        "tasks": {name: outcome.figures() for name, outcome in found.items()},
    }
    return facts, found


def outcome_of(loaded: Loaded, task: TaskFile, quiet: bool = True) -> Outcome:
    """One model on one task."""
    begin = time.perf_counter()
    own = MEASURES[task.form](loaded, task, quiet)
    about = (task.form, task.spec, task.sha256, own.tokens, time.perf_counter() - begin, own.notes)
    return Outcome(own.items, own.metric, own.chance, *about, ready=own.ready)


@dataclass(frozen=True)
class Measured:
    """Figures of each item by metric, the metric that counts, what a guess has of it, tokens, notes, and figures that
    aren't of single items."""

    items: dict[str, list[float]]
    metric: str
    chance: float | None
    tokens: int
    notes: tuple[str, ...] = ()
    ready: Mapping[str, MetricFigures] = field(default_factory=dict)


def _options(loaded: Loaded, task: TaskFile, quiet: bool) -> Measured:
    """The likeliest option, raw and by likelihood per character; the first of several alike."""
    items = [item for item in task.items if isinstance(item, Choice)]
    found, tokens, notes = log_likelihoods(loaded.model, encoded(loaded, task), task.name, quiet)
    figures: dict[str, list[float]] = {ACC: [float(best(own) == i.gold) for own, i in zip(found, items, strict=True)]}
    if all(item.lengths is not None for item in items):
        figures[ACC_NORM] = [
            float(best(own, item.lengths) == item.gold) for own, item in zip(found, items, strict=True)
        ]
    chance = sum(1 / len(item.pairs) for item in items) / len(items)
    return Measured(figures, ACC, chance, tokens, notes)


def best(options: Sequence[Likelihood], lengths: Sequence[int] | None = None) -> int:
    """Number of the likeliest option; with lengths, of nats over length."""
    values = [one.nats / size for one, size in zip(options, lengths or [1] * len(options), strict=True)]
    return values.index(max(values))


def _continuations(loaded: Loaded, task: TaskFile, quiet: bool) -> Measured:
    """Whether greedy decoding would say it, and the perplexity of what is to come."""
    found, tokens, notes = log_likelihoods(loaded.model, encoded(loaded, task), task.name, quiet)
    figures = {ACC: [float(one.greedy) for (one,) in found], PERPLEXITY: [one.nats for (one,) in found]}
    return Measured(figures, ACC, 0.0, tokens, notes)


def _questions(loaded: Loaded, task: TaskFile, quiet: bool) -> Measured:
    questions = [item for item in task.items if isinstance(item, Question)]
    said, tokens = answers(loaded, questions, task.name, quiet)
    figures = {EXACT: [float(is_right(question, answer)) for question, answer in zip(questions, said, strict=True)]}
    return Measured(figures, EXACT, 0.0, tokens)


def _labels(loaded: Loaded, task: TaskFile, quiet: bool) -> Measured:
    """The likeliest class of each text."""
    items = [item for item in task.items if isinstance(item, Labelled)]
    gold = numbers_of(loaded.model.config, [item.label for item in items], task.spec)
    found, tokens = classify(loaded, items, task.name, quiet)
    return _of_classes(loaded, found, gold, tokens)


def _tags(loaded: Loaded, task: TaskFile, quiet: bool) -> Measured:
    """The likeliest class of each word that has a label; a word is an item."""
    items = [item for item in task.items if isinstance(item, Tagged)]
    numbers = [{place: label for place, label in enumerate(item.labels) if label is not None} for item in items]
    told, tokens, lost = tag(loaded, items, task.name, quiet)
    pairs = [
        (own[place], label)
        for own, labels in zip(told, numbers, strict=True)
        for place, label in labels.items()
        if place in own
    ]
    if not pairs:
        raise InputError(f"{task.spec}: no word with a label in it goes through the model")
    gold = numbers_of(loaded.model.config, [label for _, label in pairs], task.spec)
    notes = (f"{lost} words are beyond the context and don't count",) if lost else ()
    return _of_classes(loaded, [own for own, _ in pairs], gold, tokens, notes)


def _of_classes(
    loaded: Loaded, found: list[int], gold: list[int], tokens: int, notes: tuple[str, ...] = ()
) -> Measured:
    """Accuracy, of which a blind guess has one in so many classes, and the mean of the classes' F1."""
    right = [float(own == label) for own, label in zip(found, gold, strict=True)]
    f1: MetricFigures = {"value": macro_f1(found, gold), "stderr": None}
    return Measured({ACC: right}, ACC, 1 / loaded.model.config.num_labels, tokens, notes, {F1: f1})


MEASURES: dict[str, Callable[[Loaded, TaskFile, bool], Measured]] = {
    "choices": _options,
    "contexts": _options,
    "continuation": _continuations,
    "answer": _questions,
    "label": _labels,
    "tags": _tags,
}


def encoded(loaded: Loaded, task: TaskFile) -> list[list[Pair]]:
    """The token ids of each item's options."""
    texts = [list(pairs_of(item)) for item in task.items if isinstance(item, Choice | Continuation)]
    config = loaded.model.config
    flat = encode_pairs(
        [pair for item in texts for pair in item],
        loaded.tokenizer,
        int(config.get_text_config().vocab_size),
        context_length(config) or LONGEST,
        task.spec,
    )
    each = iter(flat)
    return [[next(each) for _ in item] for item in texts]
