"""Speed and peak memory of models, each measured in a process of its own, two of them in turns.

A process that has held two models can't say what either of them needs: freed memory isn't all given back, and
the peak is the peak of both. So each model is loaded in a fresh interpreter, which runs one evaluation window
through it and is then timed. Where two are compared, their runs take turns (A B A B ...): what else the machine does
in the meantime hits both. What a process reports as `peak_memory_bytes` is

    on a CPU    the peak resident memory of the whole process: Python, torch and transformers too (a few
                hundred MB, given apart as `memory_before_model_bytes`), files mapped while loading included
    on CUDA     the peak of the memory that torch allocated on the device
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

import psutil

from secateur.errors import ResourceError, SecateurError
from secateur.report.schema.figures import OwnSpeed, SpeedFigures
from secateur.report.terminal.listening import tell, telling_parent
from secateur.system.child import Child

_CHILD = "from secateur.evaluation.measure import child; child()"
_MARK = "secateur-measure:"  # before the answer, as libraries may print what they like
RUN, END = "run", "end"  # what a process is told


class Order(TypedDict):
    """What a process is told."""

    path: str
    device: str
    dtype: str
    length: int | None
    threads: int


def measure(path: str | Path, device: str = "auto", dtype: str = "auto", length: int | None = None) -> SpeedFigures:
    """`measure_in_turns` of one model."""
    (found,) = measure_in_turns([path], device, dtype, length)
    return found


def measure_in_turns(
    paths: Sequence[str | Path], device: str = "auto", dtype: str = "auto", length: int | None = None
) -> list[SpeedFigures]:
    """Measure models in fresh processes. Takes about ten seconds for a small one, half of it imports.

    Args:
        length: tokens of the window that is run through each. Default: as evaluation does.

    Returns:
        For each: prefill_tokens_per_s, decode_tokens_per_s, prefill_range, decode_range, prompt_tokens, new_tokens,
        speed_runs, peak_memory_bytes, memory_before_model_bytes, load_before, cores.

    Raises:
        SecateurError: a process failed; the message is its own where it had one.
        ResourceError: a process was killed, most often for want of memory.
    """
    from secateur.evaluation.speed import enough, expected

    load, cores = round(psutil.getloadavg()[0], 2), psutil.cpu_count()
    with ExitStack() as stack:
        sides = [stack.enter_context(_Side(path, device, dtype, length)) for path in paths]
        for side in sides:
            side.ask()
        rounds, begin = 0, time.perf_counter()
        while not enough(rounds, spent := (time.perf_counter() - begin) / len(sides)):
            tell("measuring speed", rounds, expected(rounds, spent))
            for side in sides:
                side.ask(RUN)
            rounds += 1
        return [{**side.end(), "load_before": load, "cores": cores} for side in sides]


class _Side:
    """A process that has one model and does as it's told."""

    def __init__(self, path: str | Path, device: str, dtype: str, length: int | None) -> None:
        import torch

        self._path = path
        order: Order = {
            "path": str(path),
            "device": device,
            "dtype": dtype,
            "length": length,
            "threads": torch.get_num_threads(),  # what this process was told to use holds there too
        }
        self._child = Child(_CHILD, order, _MARK)

    def __enter__(self) -> _Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.__exit__()

    def end(self) -> OwnSpeed:
        """Its figures; it ends then."""
        found: OwnSpeed = json.loads(self.ask(END))
        return found

    def ask(self, word: str = "") -> str:
        """Its answer to a word, or its first answer: JSON."""
        answer = self._child.ask(word)
        if answer is None:
            raise self._failure()
        found = json.loads(answer)
        if "error" in found:
            raise SecateurError(found["error"])
        return answer

    def _failure(self) -> SecateurError:
        code, said = self._child.last_words()
        if code < 0:
            return ResourceError(f"measuring {self._path} was killed by signal {-code}; it may lack memory")
        return SecateurError(f"measuring {self._path} failed: {said or 'it said nothing'}")


def child() -> None:
    """What the fresh process does: loads what its argument says, then a run for each word, one line of JSON each."""
    try:
        with telling_parent():
            _serve(**json.loads(sys.argv[1]))
    except SecateurError as error:
        _tell({"error": str(error)})


def _tell(found: Mapping[str, object]) -> None:
    print(_MARK + json.dumps(found), flush=True)


def _serve(path: str, device: str, dtype: str, length: int | None, threads: int) -> None:
    import torch

    from secateur.evaluation.loading import load
    from secateur.evaluation.speed import Trial
    from secateur.evaluation.windows import evaluation_length
    from secateur.system import accelerator

    torch.set_num_threads(threads)
    before = resident_bytes()
    loaded = load(path, device, dtype)
    tokens = evaluation_length(loaded.model.config, length)
    with torch.no_grad():
        loaded.model(input_ids=torch.ones(1, tokens, dtype=torch.int64, device=loaded.device), use_cache=False)
    trial, runs = Trial(loaded.model), []
    _tell({"ready": True})
    for word in sys.stdin:
        if word.strip() != RUN:
            break
        runs.append(trial.run())
        _tell({"runs": len(runs)})
    if not runs:
        return  # whoever asked has gone
    found = asdict(trial.speed(runs))
    found["speed_runs"] = found.pop("runs")
    apart = accelerator.counts_memory(loaded.device)
    peak = accelerator.peak_bytes(loaded.device) if apart else peak_resident_bytes()
    _tell({**found, "peak_memory_bytes": peak, "memory_before_model_bytes": 0 if apart else before})


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The most resident memory that this process has had.

    Linux keeps `ru_maxrss` across fork and exec, so a child would report its parent's peak; VmHWM starts anew.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
