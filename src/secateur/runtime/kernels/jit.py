"""Compiles kernels for this processor, when they are first needed, and finds out which it can run.

llvmlite (the extra `fast`) is LLVM as a Python package, so there's nothing to compile for the user. Without it
there are no kernels, and `load` uses dense weights.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from secateur.errors import ResourceError, install
from secateur.runtime.kernels import bitmap, bytes, cut, interleave, plain, slots
from secateur.runtime.kernels.ir import Spec

MISSING = f"llvmlite isn't installed, so compressed weights run as dense ones; {install('fast')}"
_NEEDS = {
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512vbmi2"),
    "avx2": ("avx2", "fma", "f16c", "popcnt", "bmi2"),
}
_lock = threading.Lock()
_kept: list[Any] = []  # code lives as long as its engine


@dataclass(frozen=True)
class Kernel:
    """Compiled code; addresses are integers.

    - `run(layer, x, y, threads, rows at a time)`
    - `run_bf16(..., x32, y32, entries of x, entries of y)`: x and y in bf16, with room for both in float32; the
      entries are multiples of 32 and 8. None where it isn't to be had.
    """

    run: Callable[[int, int, int, int, int], None]
    run_bf16: Callable[[int, int, int, int, int, int, int, int, int], None] | None = None


@cache
def llvm() -> Any | None:
    """The LLVM binding, or None where it isn't installed."""
    try:
        import llvmlite.binding as binding
    except ImportError:
        return None
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()
    return binding


@cache
def variants() -> tuple[str, ...]:
    """What this processor can run, the fastest first; nothing without llvmlite."""
    binding = llvm()
    if binding is None:
        return ()
    has = dict(binding.get_host_cpu_features())
    return (*(name for name, needs in _NEEDS.items() if all(has.get(need) for need in needs)), "portable")


@cache
def multiplies_bytes() -> bool:
    """Whether it can run the variant of bytes.py."""
    binding = llvm()
    if binding is None or "avx512" not in variants():
        return False
    return all(binding.get_host_cpu_features().get(need) for need in bytes.NEEDS)


@cache
def host() -> str:
    """This processor, by its name and what it can do; empty without llvmlite."""
    binding = llvm()
    return "" if binding is None else f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"


@cache
def _parallel() -> int | None:
    """The address of `GOMP_parallel` in the OpenMP library that torch has loaded, so that both share its threads."""
    import torch  # noqa: F401 - loads that library

    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


@cache
def assembler(features: str | None = None) -> Any:
    """LLVM's code generator, for this processor or for one with `features`."""
    binding = llvm()
    if binding is None:
        raise ResourceError(MISSING)
    if features is None:
        features = binding.get_host_cpu_features().flatten() + ",-prefer-256-bit"
        cpu = binding.get_host_cpu_name()
    else:
        cpu = ""
    return binding.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=3)


def _compiled(text: str) -> Any:
    """An engine with the code of a module; `_lock` is held."""
    binding = llvm()
    if binding is None:
        raise ResourceError(MISSING)
    parsed = binding.parse_assembly(text)
    parsed.verify()
    # Engines own what they compile with: one each, so the shared code generator stays ours.
    features = binding.get_host_cpu_features().flatten() + ",-prefer-256-bit"
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=3
    )
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _kept.append(engine)
    return engine


@cache
def kernel(spec: Spec) -> Kernel:
    """Compiles a kernel, once a process.

    Raises:
        ResourceError: llvmlite isn't installed.
    """
    with _lock:
        binding, openmp = llvm(), _parallel()
        if binding is not None and openmp is not None:
            binding.add_symbol("GOMP_parallel", openmp)
        source = {"slots": slots, plain.NAME: plain}.get(spec.variant, bitmap)
        engine = _compiled(source.module(spec, openmp is not None))
        run = _function(engine.get_function_address("run"), 3, ctypes.c_int32, ctypes.c_int64)
        if openmp is not None and spec.batch:
            numbers = (ctypes.c_int32, ctypes.c_int64, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2)
            return Kernel(run, _function(engine.get_function_address("run_bf16"), 3, *numbers))
        if openmp is not None:
            return Kernel(run)
        return Kernel(_with_pool(_function(engine.get_function_address("work"), 1)))


def shares_threads() -> bool:
    """Whether kernels run on torch's own threads, so that there is a `run_bf16`."""
    return _parallel() is not None


@cache
def interleaver() -> Callable[..., None]:
    """The function of interleave.py, compiled once a process; integers in, nothing out.

    Raises:
        ResourceError: llvmlite isn't installed.
    """
    with _lock:
        engine = _compiled(interleave.MODULE)
        return _function(engine.get_function_address("weave"), 5, *[ctypes.c_int64] * 3)


@cache
def cutter() -> Callable[..., None]:
    """The function of cut.py, likewise."""
    with _lock:
        engine = _compiled(cut.module())
        return _function(engine.get_function_address("cut"), 7, *[ctypes.c_int64] * 2)


def _function(address: int, pointers: int, *more: Any) -> Callable[..., None]:
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * pointers, *more)(address)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="secateur")


def _with_pool(work: Callable[[Any], None]) -> Callable[[int, int, int, int, int], None]:
    """`run` where no OpenMP library can be shared: Python's own threads, which leave Python while they work."""

    def run(layer: int, x: int, y: int, threads: int, chunk: int) -> None:
        context = (ctypes.c_int64 * 5)(layer, x, y, 0, chunk)
        address = ctypes.addressof(context)
        others = [_pool(threads - 1).submit(work, address) for _ in range(threads - 1)] if threads > 1 else []
        work(address)
        for other in others:
            other.result()

    return run
