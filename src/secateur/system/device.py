"""Where and in which number format a model is computed."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from secateur.errors import InputError
from secateur.system import accelerator
from secateur.system.names import DEVICES, SHORT, USE, check_device, check_dtype, check_threads

NONE_HERE = "this machine or this build of torch has none; use cpu"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """Turns a device's name into a device; `auto` is the first CUDA device where there is one, else the CPU.

    Any kind is taken that torch knows and has here: `cuda`, `mps`, `xpu`, `npu`, and what another package registers.

    Raises:
        InputError: no such kind of device, or none here.
    """
    if check_device(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:  # an index that no machine has, or a kind that needs a package
        known = name.partition(":")[0] in DEVICES and ":" not in name
        raise InputError(f"--device {name}: {NONE_HERE}" if known else f"--device {name} is unknown; {USE}") from None
    if not accelerator.is_available(device):
        raise InputError(f"--device {name}: {NONE_HERE}")
    count = accelerator.device_count(device)
    if device.type != "cpu" and (device.index or 0) >= count:
        raise InputError(f"--device {name}: there are {count} {device.type} devices, from {device.type}:0 on")
    return device


def resolve_dtype(name: str, device: torch.device, config: Any) -> torch.dtype:
    """Turns a dtype's name into a dtype; `auto` is float32 on a CPU, and elsewhere what the checkpoint holds.

    Args:
        name: `auto`, `float32`, `float16` or `bfloat16`, or the short forms `fp32`, `fp16`, `bf16`.
        device: where it will be computed.
        config: of the model.

    Raises:
        InputError: any other name.
    """
    if check_dtype(name) == "auto":
        stored = getattr(config, "dtype", None)
        return torch.float32 if device.type == "cpu" or not isinstance(stored, torch.dtype) else stored
    return _DTYPES[SHORT.get(name, name)]


def pruning_dtype(name: str, device: torch.device, config: Any) -> torch.dtype:
    """The same, but that `auto` is bf16 on a CPU too where the checkpoint holds that and it is multiplied faster:
    statistics and solves are wider anyway."""
    found = resolve_dtype(name, device, config)
    stored = getattr(config, "dtype", None)
    halves = name == "auto" and stored is torch.bfloat16 and accelerator.multiplies_bf16(device)
    return torch.bfloat16 if halves else found


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def set_threads(count: int | None) -> None:
    """How many CPU threads torch uses; None leaves that to it.

    Raises:
        InputError: fewer than one, or far more than there are cores.
    """
    check_threads(count)
    if count is not None:
        torch.set_num_threads(count)


def device_name(device: torch.device) -> str:
    """The processor's or the GPU's own name."""
    if (name := accelerator.name(device)) is not None:
        return name
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
