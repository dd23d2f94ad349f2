"""Which form of a matrix is faster on a GPU: measured once for each shape, as runtime/choose.py does on a CPU.

Decoding decides, as its weights come from memory: Triton's kernels are taken if they aren't slower than dense there,
2:4 if it isn't and if it is faster in prefill, which it is for. What a form can't do here, it isn't taken for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import InputError
from secateur.runtime.choose import MANY, WORTH, Choice
from secateur.runtime.format import Packed, unpack
from secateur.runtime.gpu import semi_structured
from secateur.runtime.gpu.matrix import (
    HALF,
    MOST,
    TILES,
    DeviceMatrix,
    current,
    has_triton,
    interpreted,
    tile_of,
    variant_of,
)
from secateur.runtime.gpu.semi_structured import SemiStructuredMatrix
from secateur.runtime.measured_before import measured_before, version_of
from secateur.system.device import device_name

WARM, REPEAT = 10, 40  # milliseconds that a form is run for
DENSE = Choice(False, 0)
_known: dict[tuple[object, ...], Choice] = {}

Form = DeviceMatrix | SemiStructuredMatrix


def check(device: torch.device) -> None:
    """Refuses what can't be had.

    Raises:
        InputError: no CUDA device, or no Triton.
    """
    if device.type != "cuda" and not (interpreted() and device.type == "cpu"):
        raise InputError(f"runtime gpu needs a CUDA device, not {device}; use runtime auto there")
    if not has_triton():
        raise InputError("runtime gpu needs Triton, which isn't installed; pip install triton")


def makes(variant: str) -> bool:
    """Whether a form of this name is one of a GPU's."""
    return tile_of(variant) is not None or variant == semi_structured.VARIANT


def matrix_of(packed: Packed, bias: Tensor | None, device: torch.device, variant: str) -> Form:
    """A matrix on a device in the form that was chosen."""
    tile = tile_of(variant)
    if tile is not None:
        return DeviceMatrix(packed, bias, device, tile)
    return SemiStructuredMatrix(packed, bias, device)


def choose(packed: Packed, dtype: torch.dtype, device: torch.device) -> Choice:
    """Measures a matrix against its dense form on activations of a dtype, or remembers one like it."""
    if packed.values.dtype != dtype or dtype not in HALF or not packed.rows or not packed.columns:
        return DENSE
    if interpreted():  # that is no device: nothing is slower, so nothing would be learned
        return Choice(True, MOST, False, variant_of(TILES[0]))
    variants = (*map(variant_of, TILES), *([semi_structured.VARIANT] if semi_structured.fits(packed) else []))
    density = round(20 * packed.values.shape[0] / (packed.rows * packed.columns))
    where = ("gpu", device_name(device), version_of("triton"))
    key = (*where, packed.rows, packed.columns, dtype, density, variants)
    if key not in _known:
        sound = {None, *variants}
        _known[key] = measured_before(
            Choice, key, lambda: _measured(packed, device, variants), lambda kept: kept.variant in sound
        )
    return _known[key]


def _measured(packed: Packed, device: torch.device, variants: tuple[str, ...]) -> Choice:
    with current(device):  # whose stream is timed
        return measure(packed, device, variants)


def measure(packed: Packed, device: torch.device, variants: tuple[str, ...]) -> Choice:
    """Times one row of x in each form, and of what is good for prefill many rows."""
    W = unpack(packed).to(device)
    x = torch.randn(MANY, packed.columns).to(device, packed.dtype)
    one, many = (seconds(partial(F.linear, x[:n], W)) for n in (1, MANY))
    best, least = None, WORTH * one
    for variant in variants:
        try:
            form = matrix_of(packed, None, device, variant)
            if variant == semi_structured.VARIANT and seconds(partial(form.times, x)) >= many:
                continue
            taken = seconds(partial(form.times, x[:1]))
        except (RuntimeError, NotImplementedError, ValueError):  # this device can't
            continue
        if taken <= least:
            best, least = variant, taken
    if best is None:
        return Choice(False, 0, False, None, None, one)
    return Choice(True, 0 if best == semi_structured.VARIANT else MOST, False, best, least, one)


def seconds(work: Callable[[], Tensor]) -> float:
    """Median seconds of a piece of work on the device alone, with cold caches: launching isn't counted."""
    from triton.testing import do_bench  # type: ignore[import-not-found,unused-ignore]

    return float(do_bench(work, warmup=WARM, rep=REPEAT, return_mode="median")) / 1e3
