"""Names of devices, number formats and places, and numbers of threads: checked before torch is there to use them."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import entry_points

from secateur.errors import InputError

SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "npu")  # and cuda:0, cuda:1 ..., and what is registered with torch
USE = "use auto, cpu, cuda, mps, xpu, npu or another kind that torch knows here, or one of several, as in cuda:1"
DTYPES = ("auto", "float32", "bfloat16", "float16")
RUNTIMES = ("auto", "compressed", "dense", "gpu")  # how compressed weights are multiplied
HERE, RAY = PLACES = ("here", "ray")  # where the trials of a sweep run


def check_device(name: str) -> str:
    """The name itself.

    Raises:
        InputError: no kind of device that we or torch know.
    """
    found = re.fullmatch(r"([a-z][a-z0-9_]*)(:\d+)?", name)
    if found is None or (found[1] == "auto" and found[2]) or not (found[1] in DEVICES or _registered(found[1])):
        raise InputError(f"--device {name} is unknown; {USE}")
    return name


def _registered(kind: str) -> bool:
    """Whether torch may know such a device; asked without loading torch, which would take seconds."""
    torch = sys.modules.get("torch")
    if torch is None:
        return bool(entry_points(group="torch.backends"))  # packages that bring a device; torch then says which
    try:
        torch.device(kind)
    except RuntimeError:
        return False
    return True


def check_dtype(name: str) -> str:
    """The name itself.

    Raises:
        InputError: not one of `DTYPES`, nor a short form of one.
    """
    if SHORT.get(name, name) not in DTYPES:
        raise InputError(f"--dtype {name} is unknown; use auto, float32, bfloat16 or float16")
    return name


def check_threads(count: int | None) -> int | None:
    """The count itself.

    Raises:
        InputError: fewer than one, or so many that they do harm: some thousands end the process.
    """
    if count is None:
        return None
    if count < 1:
        raise InputError(f"--threads {count} is too small; give 1 or more")
    cores = os.cpu_count() or 1
    if count > (most := max(256, 4 * cores)):
        raise InputError(f"--threads {count} is too many for {cores} cores; give at most {most}")
    return count
