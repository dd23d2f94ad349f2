"""Candidates measured as tasks: each worker opens the model and runs the untouched one once, then measures for long.

A task is plain data: the settings, where the levels lie, and one candidate. What comes back is the figure that this
process would have measured with as many threads.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from typing_extensions import TypedDict

from secateur._version import __version__
from secateur.allocation.job import Job
from secateur.config.searching import SearchSettings, make_search
from secateur.errors import InputError, ResourceError, SecateurError
from secateur.model.json_files import short
from secateur.model.remote_code import allow, allowed
from secateur.pipeline.inputs import memory_for
from secateur.search.prepared import candidate_of, opened
from secateur.search.space import Candidate
from secateur.search.trial import Trials
from secateur.system.device import resolve_device, set_threads
from secateur.system.monitor import Monitor
from secateur.system.on_ray import Lost, OnRay, map_tasks

AT_ONCE = 64  # candidates that are handed over together


class Order(TypedDict):
    """What a worker is told: everything but the candidate is the same for all tasks of a search."""

    settings: str
    levels: str
    threads: int
    trusted: bool
    cwd: str
    secateur: str
    few: bool
    pieces: list[list[int | str]]


class Answer(TypedDict):
    """A divergence, or what went wrong."""

    kl: float
    error: str | None


def as_tasks(
    settings: SearchSettings, levels: Path, cluster: OnRay, few: bool = False
) -> Callable[[Sequence[Candidate]], Iterator[tuple[int, float]]]:
    """A function that measures candidates on a cluster, on few sequences or on all; it gives (place, divergence) as
    each is done.

    It raises InputError where a worker can't do what it's told, ResourceError where all its attempts were killed.
    """
    told = settings.model_dump_json(exclude_unset=True)
    same = {"settings": told, "levels": str(levels.absolute()), "threads": cluster.cpus, "trusted": allowed()}
    same |= {"cwd": os.getcwd(), "secateur": __version__, "few": few}

    def each(candidates: Sequence[Candidate]) -> Iterator[tuple[int, float]]:
        orders: list[Order] = [
            {**same, "pieces": [list(piece) for piece in candidate]}  # type: ignore[typeddict-item]
            for candidate in candidates
        ]
        with closing(map_tasks(measured, orders, cluster)) as running:
            for place, answer in running:
                if isinstance(answer, Lost):
                    raise ResourceError(f"a candidate's task was lost on Ray each time it was begun: {answer.why}")
                if answer["error"] is not None:
                    raise InputError(f"on Ray: {answer['error']}")
                yield place, answer["kl"]

    return each


_open: dict[tuple[str, str, int], Trials] = {}  # of this worker: it measures for one search, and is Ray's to end
_held = ExitStack()


def measured(order: Order) -> Answer:
    """One candidate's divergence, in a worker. Whatever goes wrong is a line of the answer; nothing is raised."""
    try:
        trials = _trials(order)
        measure = trials.roughly if order["few"] else trials.evaluate
        [kl] = measure([candidate_of(order["pieces"])])
        return {"kl": kl, "error": None}
    except SecateurError as refused:
        return {"kl": 0.0, "error": " ".join(str(refused).split())}
    except Exception as broken:  # a bug of ours, no memory, a file that is gone
        return {"kl": 0.0, "error": f"{type(broken).__name__}: {short(broken)}"}


def _trials(order: Order) -> Trials:
    """The untouched model's hidden states and what else measuring takes; made once in a worker."""
    key = order["settings"], order["levels"], order["threads"]
    if key in _open:
        return _open[key]
    node = platform.node()
    if order["secateur"] != __version__:
        raise InputError(f"{node} has secateur {__version__}, the search is of {order['secateur']}")
    levels = Path(order["levels"])
    if not levels.is_dir():
        raise InputError(f"{levels}: isn't there on {node}; give an --out that every machine sees")
    if order["trusted"]:
        allow()
    if os.path.isdir(order["cwd"]):
        os.chdir(order["cwd"])  # which relative paths in the settings are about
    _held.close()
    _open.clear()
    set_threads(order["threads"])
    settings = make_search(json.loads(order["settings"]))
    device = resolve_device(settings.device)
    inputs, _ = opened(settings, device, _held.enter_context(Monitor(device, True)))
    scratch = Path(_held.enter_context(tempfile.TemporaryDirectory(prefix="secateur-", ignore_cleanup_errors=True)))
    every, tokens = tuple(range(inputs.checkpoint.layers)), inputs.calibration.tokens
    job = Job(inputs.config, inputs.rules, inputs.streamed, tokens, every, budget=memory_for(inputs.config, device))
    with torch.no_grad():
        trials = Trials.of(job._replace(counts=inputs.calibration.counts), levels, scratch)
    _open[key] = _held.enter_context(trials)
    return _open[key]
