"""Tasks of EleutherAI's lm-eval by name, on a model that is loaded already: its prompts and metrics, our passes.

So any model that Secateur loads is judged, uneven and compressed ones too, without remote code. Task files of the
user's own (`include_path`) are lm-eval's YAML; functions that they name are Python, and are run.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from secateur.config.suggestions import nearest
from secateur.errors import InputError, SecateurError, install
from secateur.evaluation.loading import Loaded
from secateur.evaluation.tasks.answers import Asked, write
from secateur.evaluation.tasks.encode import Pair, encode, encode_pairs
from secateur.evaluation.tasks.likelihood import Likelihood, log_likelihoods
from secateur.evaluation.tasks.outcome import Outcome
from secateur.evaluation.windows import LONGEST, context_length
from secateur.report.schema.tasks import MetricFigures

FORM = "lm-eval"
MAX_TOKENS = 256  # of an answer, where a task doesn't say
PLAIN = "none"  # the name of the filter that leaves answers as they are


def check_installed(name: str) -> None:
    """Refuses a task that is no file where lm-eval isn't installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(f"task {name!r} is no file here; tasks by name need lm-eval: run {install('tasks')}")


def open_tasks(names: Sequence[str], include_path: str | None = None) -> Any:
    """lm-eval's index of tasks, in which all of `names` are.

    Raises:
        InputError: lm-eval isn't installed, or doesn't know a task.
    """
    check_installed(names[0])
    with _quietly():
        from lm_eval.tasks import TaskManager

        try:
            manager = TaskManager(include_path=include_path)
        except Exception as error:  # whatever a YAML file makes it raise
            raise InputError(f"--include-path {include_path}: lm-eval can't read it ({_line(error)})") from None
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            raise InputError(f"task '{name}' is no file here, and lm-eval doesn't know it{nearest(name, known)}")
    return manager


def harness_outcomes(
    loaded: Loaded, manager: Any, names: Sequence[str], limit: int | None, shots: int | None, quiet: bool = True
) -> dict[str, Outcome]:
    """Task -> what became of its items; groups have figures only, or their tasks' items where those add up to them.

    Raises:
        InputError: a task that can't be had (its data is on the hub), or that this model can't do.
    """
    begin = time.perf_counter()
    model = _language_model(loaded, quiet)
    try:
        with _quietly():
            from lm_eval.evaluator import simple_evaluate

            found = simple_evaluate(
                model,
                tasks=list(names),
                num_fewshot=shots,
                limit=limit,
                bootstrap_iters=0,
                task_manager=manager,
                verbosity="ERROR",
            )
    except SecateurError:
        raise
    except Exception as error:  # tasks are programs, their data comes from the hub
        raise InputError(f"lm-eval can't run {', '.join(names)}: {_line(error)}") from None
    seconds = time.perf_counter() - begin
    return {name: _outcome(name, found, model.tokens, seconds, tuple(model.notes)) for name in found["results"]}


def _outcome(name: str, found: Mapping[str, Any], tokens: int, seconds: float, notes: tuple[str, ...]) -> Outcome:
    ready = _ready(found["results"][name])
    members = found.get("group_subtasks", {}).get(name) or [name]
    items = {}
    for metric, figures in ready.items():
        values = _items(found["samples"], members, metric)
        # Only of means; what else a metric is made of isn't a figure for each item.
        if values and abs(sum(values) / len(values) - figures["value"]) < 1e-9:
            items[metric] = values
    count = sum(found.get("n-samples", {}).get(member, {}).get("effective", 0) for member in members)
    metric = next((m for m in ("acc", "exact_match") if m in ready), next(iter(ready), ""))
    version = found.get("versions", {}).get(name)
    data = f"lm-eval {name}" + (f", version {version}" if version is not None else "")
    return Outcome(items, metric, None, FORM, data, None, tokens, seconds, notes, ready, count)


def _ready(results: Mapping[str, Any]) -> dict[str, MetricFigures]:
    """Metric -> figures, from keys such as `acc,none` and `acc_stderr,none`."""
    found: dict[str, MetricFigures] = {}
    for key, value in results.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = results.get(f"{metric}_stderr,{kind}")
            name = metric if kind == PLAIN else key
            found[name] = {"value": float(value), "stderr": error if isinstance(error, float) else None}
    return found


def _items(samples: Mapping[str, Any], members: Iterable[str], metric: str) -> list[float]:
    name, _, kind = metric.partition(",")
    rows = [row for member in members for row in samples.get(member, ()) if row["filter"] == (kind or PLAIN)]
    values = [row.get(name) for row in rows]
    return [float(v) for v in values] if all(isinstance(v, int | float) for v in values) else []


def _language_model(loaded: Loaded, quiet: bool) -> Any:
    """The model as lm-eval wants one. It keeps count of `tokens`, and of `notes`."""
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokenizer: Any = loaded.tokenizer
    config = loaded.model.config
    vocabulary, longest = int(config.get_text_config().vocab_size), context_length(config) or LONGEST

    class Model(LM):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.notes = 0, dict[str, None]()

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            pairs = encode_pairs([r.args for r in requests], tokenizer, vocabulary, longest, _name(requests))
            found = self._likelihoods(_groups(requests, pairs), _name(requests))
            return [(one.nats, one.greedy) for group in found for one in group]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            rows = encode([request.args[0] for request in requests], tokenizer, _name(requests), special=False)
            groups = [
                [Pair(tuple(a), tuple(b)) for a, b in map(make_disjoint_window, windows)]
                for windows in (get_rolling_token_windows(row, start, longest, 1) for row in rows)
            ]
            flat = iter(self._likelihoods([[pair] for group in groups for pair in group], _name(requests)))
            return [sum(next(flat)[0].nats for _ in group) for group in groups]

        def generate_until(self, requests: list[Any]) -> list[str]:
            rows = encode([request.args[0] for request in requests], tokenizer, _name(requests))
            asked = [_asked(row, request.args[1], longest) for row, request in zip(rows, requests, strict=True)]
            found, tokens = write(loaded, asked, _name(requests), quiet)
            self.tokens += tokens
            return found

        def _likelihoods(self, groups: list[list[Pair]], label: str) -> list[list[Likelihood]]:
            found = log_likelihoods(loaded.model, groups, label, quiet)
            self.tokens += found.tokens
            self.notes |= dict.fromkeys(found.notes)
            return found.groups

    return Model()


def _name(requests: Sequence[Any]) -> str:
    """The tasks behind some requests, for the progress display."""
    names = list(dict.fromkeys(str(request.task_name) for request in requests))
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _groups(requests: Sequence[Any], pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The options of each item, which stand one after the other."""
    groups: list[list[Pair]] = []
    last = None
    for request, pair in zip(requests, pairs, strict=True):
        own = (request.task_name, request.doc_id)
        if own != last:
            groups.append([])
        groups[-1].append(pair)
        last = own
    return groups


def _asked(ids: list[int], told: Mapping[str, Any], longest: int) -> Asked:
    """What a task's `generation_kwargs` ask for; a prompt that is too long loses its beginning.

    Raises:
        InputError: sampling: only the likeliest answer can be repeated and compared.
    """
    if told.get("do_sample"):
        raise InputError("a task asks for sampled answers, and only greedy ones are compared; take another task")
    until = told.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    most = int(told.get("max_gen_toks", MAX_TOKENS))
    if most >= longest:
        raise InputError(f"a task asks for answers of {most} tokens, and the model's context is {longest}")
    return Asked(ids[-(longest - most) :], stop, most)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without lm-eval's own talk; its progress bars would run over ours."""
    logger, before = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level
    bars = os.environ.get("TQDM_DISABLE")
    logger.setLevel(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"  # read by tqdm when it is imported
    try:
        yield
    finally:
        logger.setLevel(before)
        os.environ.pop("TQDM_DISABLE") if bars is None else os.environ.update(TQDM_DISABLE=bars)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
