"""What a benchmark ran on, in full: figures without that are worth nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from secateur.report.schema.bench import MachineFacts
from secateur.runtime.kernels.jit import variants

_FLAGS = ("avx2", "fma", "f16c", "bmi2", "avx512f", "avx512_vbmi2", "avx512_bf16", "amx_bf16", "asimd", "sve")
_PACKAGES = ("torch", "transformers", "safetensors", "numpy", "llvmlite")
_SETTINGS = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "KMP_AFFINITY",
    "MKL_NUM_THREADS",
    "GOMP_CPU_AFFINITY",
)


def machine(threads: int) -> MachineFacts:
    """Facts about this machine and its software as plain data."""
    return {
        "processor": processor(),
        "architecture": platform.machine(),
        "features": [flag for flag in _FLAGS if flag in _cpuinfo("flags", "Features").split()],
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "load_before": [round(load, 2) for load in psutil.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "huge_pages": _huge_pages(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": list(variants()),
        "environment": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def processor() -> str:
    """The processor's name."""
    return _cpuinfo("model name", "Model") or platform.processor() or platform.machine()


def _cpuinfo(*keys: str) -> str:
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.is_file() else []:
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _huge_pages() -> str | None:
    file = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not file.is_file():
        return None
    return next((word.strip("[]") for word in file.read_text().split() if word.startswith("[")), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
