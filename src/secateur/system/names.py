"""Names of devices, number formats and places, and numbers of threads: checked before torch is there to use them."""

from __future__ import annotations

import os
import re

from secateur.errors import InputError

SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DEVICES = ("auto", "cpu", "cuda", "mps")  # and cuda:0, cuda:1 ...
DTYPES = ("auto", "float32", "bfloat16", "float16")
HERE, RAY = PLACES = ("here", "ray")  # where the trials of a sweep run


def check_device(name: str) -> str:
    """The name itself.

    Raises:
        InputError: no kind of device that we know.
    """
    if not re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", name):
        raise InputError(f"--device {name} is unknown; use auto, cpu, cuda, cuda:N or mps")
    return name


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
