"""One trial, run in this process: a fresh one here, or a worker of Ray's."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import time
from pathlib import Path

import yaml

from secateur._version import __version__
from secateur.config.parsing import StrictLoader
from secateur.config.recipe import make_recipe
from secateur.errors import InputError, SecateurError
from secateur.model.json_files import short
from secateur.model.remote_code import allow
from secateur.report.schema.sweep import TrialOrder, TrialOutcome
from secateur.sweeps.area import is_sweep_area, note_start
from secateur.system.child import Child

MARK = "secateur-trial "
_CHILD = "from secateur.sweeps.trial import child; child()"


def run_trial(order: TrialOrder) -> TrialOutcome:
    """Prunes by the recipe of a trial, and goes on where an attempt before this one has stopped.

    Returns:
        What has become of it; whatever went wrong is a line in there, and nothing is raised.
    """
    begin, error = time.monotonic(), None
    try:
        _run(order)
    except SecateurError as refused:
        error = " ".join(str(refused).split())
    except Exception as broken:  # a bug of ours, no memory, a disk that is full: the other trials go on
        error = f"{type(broken).__name__}: {short(broken)}"
    return {"name": order["name"], "error": error, "seconds": round(time.monotonic() - begin, 3)}


def _run(order: TrialOrder) -> None:
    out = Path(order["out"])
    if not is_sweep_area(out.parent):
        raise InputError(f"{out.parent}: isn't there on {platform.node()}; give an --out that every machine sees")
    if order["secateur"] != __version__:
        raise InputError(f"{platform.node()} has secateur {__version__}, the sweep is of {order['secateur']}")
    note_start(out.parent, order["name"])
    if order["trusted"]:
        allow()
    if os.path.isdir(order["cwd"]):
        os.chdir(order["cwd"])  # which relative paths in a recipe are about
    from secateur.pipeline.prune import prune
    from secateur.system.device import set_threads

    set_threads(order["threads"])
    recipe = make_recipe(yaml.load(order["recipe"], StrictLoader))
    prune(recipe, out, overwrite=order["overwrite"], resume=not order["overwrite"], quiet=True)


def in_own_process(order: TrialOrder) -> TrialOutcome:
    """Runs a trial in a fresh process: what it takes of memory is free again, and its crash is its own."""
    begin = time.monotonic()
    threads = order["threads"]
    changes = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with Child(_CHILD, {}, MARK, {"TOKENIZERS_PARALLELISM": "false", **changes}) as process:
        answer = process.ask(json.dumps(order))
        if answer is not None:
            outcome: TrialOutcome = json.loads(answer)
            return outcome
        code, said = process.last_words()
    return {
        "name": order["name"],
        "error": _ended(code, said),
        "seconds": round(time.monotonic() - begin, 3),
    }


def _ended(code: int, said: str) -> str:
    """What is known of a process that has given no answer."""
    if code != -signal.SIGKILL:
        return f"its process ended with {code}: {said or 'it said nothing'}"
    return "its process was killed, as systems do where memory runs out; use fewer samples, or a smaller length"


def child() -> None:
    """The fresh process. The sweep that began it ends it, and it doesn't outlive the sweep."""
    for number in (signal.SIGINT, signal.SIGTERM):  # terminals and schedulers send them to the sweep as well
        signal.signal(number, signal.SIG_IGN)
    order: TrialOrder = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_sweep, daemon=True).start()
    print(f"{MARK}{json.dumps(run_trial(order))}", flush=True)


def _end_with_sweep() -> None:
    sys.stdin.read()  # until the other end is closed, by whatever end the sweep has had
    os._exit(1)
