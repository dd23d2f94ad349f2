"""What torch asks a device's own module for, and the kernels that it calls without a tensor of the device."""

from __future__ import annotations

from typing import Any

import torch

from tests.simulated import device as sim


class Stream:
    """Everything is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None: ...

    def synchronize(self) -> None: ...

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def query(self) -> bool:
        return True


class Event(Stream):
    def record(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def elapsed_time(self, _: Any) -> float:
        return 0.0


class Backend:
    """`torch.sim`, as others have `torch.cuda`."""

    Stream, Event = Stream, Event

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    bf16 = False  # else products are in bf16 where they aren't on a CPU

    def is_bf16_supported(self, *_: Any) -> bool:
        return self.bf16

    def current_device(self) -> int:
        return 0

    def set_device(self, *_: Any) -> None: ...

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def get_device_name(self, *_: Any) -> str:
        return "simulated device"

    def synchronize(self, *_: Any) -> None:
        sim.COUNTS.wait("synchronize")

    def current_stream(self, *_: Any) -> Stream:
        return Stream()

    def stream(self, own: Stream) -> Stream:
        return own

    def manual_seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.default_generator.get_state()

    def set_rng_state(self, state: torch.Tensor, *_: Any) -> None:
        torch.default_generator.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def memory_allocated(self, *_: Any) -> int:
        return sim.MEMORY.now

    def max_memory_allocated(self, *_: Any) -> int:
        return sim.MEMORY.peak

    def reset_peak_memory_stats(self, *_: Any) -> None:
        sim.MEMORY.peak = sim.MEMORY.now

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        total = sim.MEMORY.total or 2**34
        return total - sim.MEMORY.now, total

    def empty_cache(self) -> None: ...


MAKERS = (  # that torch would begin with an empty tensor and let grow
    *("eye", "eye.m", "arange", "arange.start", "arange.start_step", "linspace", "randperm", "randperm.generator"),
    *("tril_indices", "triu_indices"),
)
LOWER = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "einsum")  # what autocast casts on any device


def kernels() -> list[Any]:
    """Registers those that need no tensor of the device to be reached, attention, and autocast."""
    aten = torch.library.Library("aten", "IMPL")
    aten.impl("empty_strided", _empty_strided, "PrivateUse1")
    aten.impl("empty.memory_format", _empty, "PrivateUse1")
    for name in MAKERS:
        own, _, overload = name.partition(".")
        aten.impl(name, _made(getattr(getattr(torch.ops.aten, own), overload or "default")), "PrivateUse1")
    aten.impl("_copy_from", _copy_from, "PrivateUse1")
    aten.impl("scaled_dot_product_attention", _attention, "AutogradPrivateUse1")
    other = torch.library.Library("_", "IMPL")
    other.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in LOWER:
        aten.impl(name, _cast(getattr(torch.ops.aten, name).default), "AutocastPrivateUse1")
    return [aten, other]


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Any:
    return sim.SimTensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> Any:
    return sim.SimTensor(torch.empty(size, dtype=dtype, device="cpu"))


def _made(operation: Any) -> Any:
    """Numbers that are written down, or drawn as the CPU draws them."""
    return lambda *args, device=None, **how: sim.SimTensor(operation(*args, device="cpu", **how))


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
    """Where torch has switched its own dispatch off, as in `torch.tensor`."""
    there = isinstance(source, sim.SimTensor)
    if there != isinstance(target, sim.SimTensor):
        sim.copied(source, to_host=there, waits=not non_blocking)
    getattr(target, "held", target).copy_(getattr(source, "held", source))
    return target


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **how: Any,
) -> Any:
    """The kernel that the CPU would choose."""
    scale, grouped = how.get("scale"), how.get("enable_gqa", False)
    inner = (getattr(x, "held", x) for x in (query, key, value, attn_mask))
    if torch._fused_sdp_choice(*inner, dropout_p, is_causal, scale=scale, enable_gqa=grouped) == 1:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=grouped
    )[0]


def _cast(operation: Any) -> Any:
    """An operation that autocast does in fewer bits."""

    def called(*args: Any, **kwargs: Any) -> Any:
        own = torch.get_autocast_dtype(sim.DEVICE.type)
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*(_lowered(x, own) for x in args), **kwargs)

    return called


def _lowered(x: Any, dtype: torch.dtype) -> Any:
    if isinstance(x, list | tuple):
        return [_lowered(each, dtype) for each in x]
    return x.to(dtype) if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x
