"""Speed and peak memory of one model, measured in a process of its own.

A process that has held two models can't say what either of them needs: freed memory isn't all given back, and
the peak is the peak of both. So each model is loaded in a fresh interpreter, which runs one evaluation window
through it and then times it. What it reports as `peak_memory_bytes` is

    on a CPU    the peak resident memory of the whole process: Python, torch and transformers too (a few
                hundred MB, given apart as `memory_before_model_bytes`), files mapped while loading included
    on CUDA     the peak of the memory that torch allocated on the device
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secateur.errors import ResourceError, SecateurError

_CHILD = "from secateur.evaluation.measure import child; child()"
_MARK = "secateur-measure:"  # before the answer, as libraries may print what they like


def measure(path: str | Path, device: str = "auto", dtype: str = "auto", length: int | None = None) -> dict[str, Any]:
    """Measure a model in a fresh process. Takes about ten seconds for a small one, half of it imports.

    Args:
        length: tokens of the window that is run through it. Default: as evaluation does.

    Returns:
        prefill_tokens_per_s, decode_tokens_per_s, prompt_tokens, new_tokens, speed_runs,
        peak_memory_bytes, memory_before_model_bytes.

    Raises:
        SecateurError: the process failed; the message is its own where it had one.
        ResourceError: the process was killed, most often for want of memory.
    """
    import torch

    order = {"path": str(path), "device": device, "dtype": dtype, "length": length}
    order["threads"] = torch.get_num_threads()  # what this process was told to use holds there too
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(order)], capture_output=True, text=True, env=_environment()
    )
    answer = next((line for line in done.stdout.splitlines() if line.startswith(_MARK)), None)
    if answer is not None:
        found = json.loads(answer.removeprefix(_MARK))
        if "error" in found:
            raise SecateurError(found["error"])
        return found
    if done.returncode < 0:
        raise ResourceError(f"measuring {path} was killed by signal {-done.returncode}; it may lack memory")
    reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise SecateurError(f"measuring {path} failed: {reason}")


def child() -> None:
    """What the fresh process does: measure what its argument says and print the answer as one line of JSON."""
    try:
        found = _measure_here(**json.loads(sys.argv[1]))
    except SecateurError as error:
        found = {"error": str(error)}
    print(_MARK + json.dumps(found), flush=True)


def _measure_here(path: str, device: str, dtype: str, length: int | None, threads: int) -> dict[str, Any]:
    import torch

    from secateur.evaluation.loading import load
    from secateur.evaluation.speed import speed
    from secateur.evaluation.windows import evaluation_length

    torch.set_num_threads(threads)
    before = resident_bytes()
    loaded = load(path, device, dtype)
    tokens = evaluation_length(loaded.model.config, length)
    with torch.no_grad():
        loaded.model(input_ids=torch.ones(1, tokens, dtype=torch.int64, device=loaded.device), use_cache=False)
    found = asdict(speed(loaded.model))
    found["speed_runs"] = found.pop("runs")
    on_cuda = loaded.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(loaded.device) if on_cuda else peak_resident_bytes()
    return {**found, "peak_memory_bytes": peak, "memory_before_model_bytes": 0 if on_cuda else before}


def resident_bytes() -> int:
    """Resident memory of this process now."""
    import psutil

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
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _environment() -> dict[str, str]:
    """This process's environment, with the running copy of the package first on the path."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRANSFORMERS_VERBOSITY": "error"}
