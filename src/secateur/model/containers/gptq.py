"""GPTQ (Frantar et al., arXiv 2210.17323) as AutoGPTQ and GPTQModel store it: w = (q - z) * scale.

`qweight` is int32 (in * bits / 32, out), packed downwards; `qzeros` (groups, out * bits / 32), packed along rows;
`scales` (groups, out); `g_idx` (in) says which group an input belongs to (`i // group_size` where it's missing). The
older of the two formats ("gptq") stores z - 1, the newer ("gptq_v2") z.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from secateur.model.containers.packing import unpack, words
from secateur.model.containers.tensors import FLOATS, Plain, Tensors
from secateur.model.json_files import Json

BITS = (2, 3, 4, 8)
MOST_GROUP = 2**20


def dequantise(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, group: Tensor, bits: int, zero_is_less: bool
) -> Tensor:
    """fp32 (out, in).

    Args:
        group: (in) int64, the group of each input.
        zero_is_less: what is stored is z - 1; a z of 0 is then all ones, so it's taken by modulus.
    """
    inputs, outputs = len(group), scales.shape[1]
    zeros = unpack(qzeros, bits, outputs)
    if zero_is_less:
        zeros = (zeros + 1) & ((1 << bits) - 1)
    codes = unpack(qweight, bits, inputs, dim=0)
    return ((codes - zeros[group]).float() * scales.float()[group]).T


def plan(tensors: Tensors, config: Json) -> Iterator[Plain]:
    form = config.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
        raise tensors.bad(f"the layout {str(form)[:40]} is not read; gptq and gptq_v2 are")
    bits = tensors.number(config, "bits", BITS)
    size = tensors.number(config, "group_size", range(-1, MOST_GROUP), 128)
    for name in tensors.ending(".qweight"):
        rows, outputs = tensors.shape(f"{name}.qweight", ("I32",), 2)
        index = f"{name}.g_idx" if f"{name}.g_idx" in tensors else None
        inputs = rows * 32 // bits if index is None else tensors.shape(index, ("I32", "I64"), 1)[0]
        # Some modules may have more bits than others; then their shapes say it.
        own = next((n for n in (bits, *BITS) if words(inputs, n) == rows), None)
        if own is None:
            raise tensors.wrong(f"{name}.qweight", f"has {rows} rows, which isn't {inputs} inputs of {bits} bits")
        groups = tensors.shape(f"{name}.scales", FLOATS, 2)[0]
        if index is None and size > 0 and -(-inputs // size) != groups:
            raise tensors.wrong(f"{name}.scales", f"has {groups} groups, which isn't {inputs} inputs by {size}")
        tensors.expect(f"{name}.scales", FLOATS, (groups, outputs))
        tensors.expect(f"{name}.qzeros", ("I32",), (groups, words(outputs, own)))
        parts = tuple(f"{name}.{part}" for part in ("qweight", "qzeros", "scales"))
        used = parts if index is None else (*parts, index)
        make = partial(_made, tensors, used, size if size > 0 else inputs, inputs, own, form == "gptq")
        yield Plain(f"{name}.weight", (outputs, inputs), used, make)


def _made(tensors: Tensors, parts: tuple[str, ...], size: int, inputs: int, bits: int, zero_is_less: bool) -> Tensor:
    qweight, qzeros, scales = (tensors.read(part) for part in parts[:3])
    group = torch.arange(inputs) // size if len(parts) == 3 else tensors.index(parts[3], len(scales))
    return dequantise(qweight, qzeros, scales, group, bits, zero_is_less)
