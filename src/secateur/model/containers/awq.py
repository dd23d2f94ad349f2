"""AWQ (Lin et al., arXiv 2306.00978) in AutoAWQ's layout `gemm`: w = (q - z) * scale.

`qweight` is int32 (in, out * bits / 32), `qzeros` (in / group, out * bits / 32), `scales` (in / group, out). With
four bits the eight codes of a word belong to its columns 0, 2, 4, 6, 1, 3, 5, 7, from the lowest bits upwards; other
numbers of bits, which GPTQModel writes, lie in a row without gaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from secateur.model.containers.packing import unpack, words
from secateur.model.containers.scales import grains, spread
from secateur.model.containers.tensors import FLOATS, Plain, Tensors
from secateur.model.json_files import Json

BITS = range(2, 9)
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # with four bits
MOST_GROUP = 2**20


def codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """int32 (rows, words) -> int32 (rows, count), columns in their own order."""
    found = unpack(packed, bits, count)
    if bits != 4:
        return found
    return found.view(len(packed), -1, len(ORDER))[..., torch.tensor(ORDER).argsort()].flatten(1)


def dequantise(qweight: Tensor, qzeros: Tensor, scales: Tensor, size: int, bits: int = 4) -> Tensor:
    """fp32 (out, in); `size` inputs share a scale."""
    outputs = scales.shape[1]
    q, z = codes(qweight, bits, outputs), codes(qzeros, bits, outputs)
    shape, sizes = q.shape, (size, 1)
    return ((q - spread(z, shape, sizes)) * spread(scales, shape, sizes)).T


def plan(tensors: Tensors, config: Json) -> Iterator[Plain]:
    for key in ("version", "checkpoint_format", "format"):  # as AutoAWQ says it, and GPTQModel
        form = str(config.get(key, "gemm")).lower()
        if form != "gemm":
            raise tensors.bad(f"the layout {form[:40]} is not read; gemm is")
    bits = tensors.number(config, "bits", BITS, config.get("w_bit"))
    group = tensors.number(config, "group_size", range(-1, MOST_GROUP), config.get("q_group_size", 128))
    for name in tensors.ending(".qweight"):
        parts = tuple(f"{name}.{part}" for part in ("qweight", "qzeros", "scales"))
        inputs, packed = tensors.shape(parts[0], ("I32",), 2)
        groups, outputs = tensors.shape(parts[2], FLOATS, 2)
        if words(outputs, bits) != packed or (bits == 4 and outputs % len(ORDER)):
            raise tensors.wrong(parts[0], f"has {packed} words, which isn't {outputs} outputs of {bits} bits")
        tensors.expect(parts[1], ("I32",), (groups, packed))
        size = grains(tensors, parts[2], (inputs, outputs), [[group], []], FLOATS)[0]
        yield Plain(f"{name}.weight", (outputs, inputs), parts, partial(_made, tensors, parts, size, bits))


def _made(tensors: Tensors, parts: tuple[str, ...], size: int, bits: int) -> Tensor:
    qweight, qzeros, scales = (tensors.read(part) for part in parts)
    return dequantise(qweight, qzeros, scales, size, bits)
