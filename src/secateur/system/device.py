"""Where and in which number format a model is computed."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from secateur.errors import InputError

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU.

    Raises:
        InputError: no such kind of device, or none here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name} is unknown; use auto, cpu, cuda, cuda:N or mps") from None
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(device.type, False):
        raise InputError(f"--device {name}: this machine or this build of torch has none; use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0 on")
    return device


def resolve_dtype(name: str, device: torch.device, config: Any) -> torch.dtype:
    """`auto` is float32 on a CPU, and elsewhere what the checkpoint holds.

    Raises:
        InputError: not one of float32, float16, bfloat16.
    """
    if name == "auto":
        stored = getattr(config, "dtype", None)
        return torch.float32 if device.type == "cpu" or not isinstance(stored, torch.dtype) else stored
    dtype = _DTYPES.get(_SHORT.get(name, name))
    if dtype is None:
        raise InputError(f"--dtype {name} is unknown; use auto, float32, bfloat16 or float16")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def set_threads(count: int | None) -> None:
    """How many CPU threads torch uses; None leaves that to it.

    Raises:
        InputError: fewer than one, or far more than there are cores.
    """
    if count is not None:
        check_threads(count)
        torch.set_num_threads(count)


def check_threads(count: int) -> None:
    """Raises InputError for a number of threads that does harm: some thousands end the process."""
    if count < 1:
        raise InputError(f"--threads {count} is too small; give 1 or more")
    most = max(256, 4 * (os.cpu_count() or 1))
    if count > most:
        raise InputError(f"--threads {count} is too many for {os.cpu_count()} cores; give at most {most}")


def device_name(device: torch.device) -> str:
    """The processor's or the GPU's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
