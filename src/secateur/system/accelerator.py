"""Accelerators of any kind: what torch's module for a kind of device tells of one, and does to it.

torch.cuda, torch.mps, torch.xpu, torch.npu and what other packages register offer the same under the same names, or
don't offer it. Nothing in here asks for a kind by name, except where torch's modules differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch


def module_of(device: torch.device) -> Any | None:
    """torch's module for a kind of device, such as `torch.cuda`; None for the CPU and for kinds that have none."""
    if device.type == "cpu":
        return None
    try:
        return torch.get_device_module(device)
    except RuntimeError:
        return None


def is_available(device: torch.device) -> bool:
    """Whether this machine and this build of torch have devices of that kind."""
    if device.type == "mps":  # its module doesn't tell before torch 2.7
        return bool(torch.backends.mps.is_available())
    return device.type == "cpu" or bool(_ask(device, "is_available", default=False))


def device_count(device: torch.device) -> int:
    """Devices of that kind here."""
    return int(_ask(device, "device_count", default=1))


def name(device: torch.device) -> str | None:
    """A device's own name; None where torch doesn't tell."""
    found = _ask(device, "get_device_name", device)
    return None if found is None else str(found)


def make_current(device: torch.device) -> None:
    """What a process does on that kind of device without naming one, it does on this one from now on."""
    _ask(device, "set_device", device)


def synchronize(device: torch.device) -> None:
    """Waits until everything that was begun on a device is done."""
    _ask(device, "synchronize", *([] if device.type == "mps" else [device]))  # of mps there is only one


def empty_cache(device: torch.device) -> None:
    """Gives back the memory that torch keeps for later; does nothing on a CPU."""
    _ask(device, "empty_cache")


def counts_memory(device: torch.device) -> bool:
    """Whether torch counts the memory of a device; it doesn't on a CPU."""
    return allocated_bytes(device) is not None


def allocated_bytes(device: torch.device) -> int | None:
    """Memory that tensors have there now; None where nobody counts."""
    if device.type == "mps":
        return int(torch.mps.current_allocated_memory())
    found = _ask(device, "memory_allocated", device)
    return None if found is None else int(found)


def peak_bytes(device: torch.device) -> int:
    """The most that tensors had there since `reset_peak`; what they have now where only that is known."""
    found = _ask(device, "max_memory_allocated", device)
    return int(found) if found is not None else allocated_bytes(device) or 0


def reset_peak(device: torch.device) -> None:
    """Begins to count the peak anew."""
    _ask(device, "reset_peak_memory_stats", device)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device now; the machine's where the device has none of its own or doesn't tell."""
    if device.type == "mps":
        return max(0, int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory()))
    found = _ask(device, "mem_get_info", device)
    return int(psutil.virtual_memory().available if found is None else found[0])


def has_own_memory(device: torch.device) -> bool:
    """Whether a device has memory apart from the machine's, and tells how much of it is free."""
    return hasattr(module_of(device), "mem_get_info")


def pinned_like(value: torch.Tensor) -> torch.Tensor | None:
    """An empty tensor like it on the host, which its device copies to while it works; None where it can't."""
    if not has_own_memory(value.device) or not hasattr(module_of(value.device), "Event"):
        return None
    try:
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    except RuntimeError:  # no such memory, or none left
        return None


def event(device: torch.device) -> Any:
    """A mark behind everything that was begun on a device so far; its `synchronize` waits for that."""
    module = module_of(device)
    assert module is not None
    found = module.Event()
    found.record(module.current_stream(device))  # its own, not that of the kind's current device
    return found


def multiplies_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are faster than in fp32: whether the hardware has them; where torch doesn't tell, it
    is believed not to. A CPU without instructions for them (AVX-512 BF16, AMX, Arm's) takes several times as long."""
    if device.type != "cpu":
        return bool(_ask(device, "is_bf16_supported", default=False))
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 and later
    return any(there is True for name, there in told.items() if "bf16" in name)


@contextmanager
def exact_products_of(*given: torch.Tensor | None) -> Iterator[None]:
    """In here a CPU that multiplies bf16 faster does so with fp32 copies of these, where all are in bf16: products of
    such numbers are exact in fp32, and summed in it. Other fp32 matrices would be rounded.

    Args:
        given: tensors on one device; those that are None don't count.
    """
    there = [x for x in given if x is not None]
    products = getattr(torch.backends.mkldnn, "matmul", None)  # torch 2.9 and later
    own = getattr(products, "fp32_precision", None)
    halves = all(x.dtype == torch.bfloat16 for x in there) and there[0].device.type == "cpu"
    if not halves or own is None or not multiplies_bf16(there[0].device):
        yield
        return
    products.fp32_precision = "bf16"  # type: ignore[union-attr]
    try:
        yield
    finally:
        products.fp32_precision = own  # type: ignore[union-attr]


@contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Random numbers that are drawn in here, on the CPU or on a device, leave those drawn afterwards as they were."""
    own = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=own, device_type=device.type if own else "cuda"):
        yield


def _ask(device: torch.device, name: str, *args: Any, default: Any = None) -> Any:
    function = getattr(module_of(device), name, None)
    return default if function is None else function(*args)
