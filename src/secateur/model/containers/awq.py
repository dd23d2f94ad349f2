"""AWQ (Lin et al., arXiv 2306.00978) in AutoAWQ's layout `gemm`: w = (q - z) * scale, four bits.

`qweight` is int32 (in, out / 8), `qzeros` (in / group, out / 8), `scales` (in / group, out). The eight codes of a
word belong to its columns 0, 2, 4, 6, 1, 3, 5, 7, from the lowest bits upwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from secateur.model.containers.packing import unpack
from secateur.model.containers.scales import grains, spread
from secateur.model.containers.tensors import FLOATS, Plain, Tensors
from secateur.model.json_files import Json

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
MOST_GROUP = 2**20


def codes(packed: Tensor) -> Tensor:
    """int32 (rows, words) -> int32 (rows, 8 * words), columns in their own order."""
    found = unpack(packed, BITS, packed.shape[1] * len(ORDER)).view(len(packed), -1, len(ORDER))
    return found[..., torch.tensor(ORDER).argsort()].flatten(1)


def dequantise(qweight: Tensor, qzeros: Tensor, scales: Tensor, size: int) -> Tensor:
    """fp32 (out, in); `size` inputs share a scale."""
    q, z = codes(qweight), codes(qzeros)
    shape, sizes = q.shape, (size, 1)
    return ((q - spread(z, shape, sizes)) * spread(scales, shape, sizes)).T


def plan(tensors: Tensors, config: Json) -> Iterator[Plain]:
    form = str(config.get("version", "gemm")).lower()
    if form != "gemm":
        raise tensors.bad(f"the layout {form[:40]} is not read; gemm is")
    tensors.number(config, "bits", (BITS,), config.get("w_bit"))
    group = tensors.number(config, "group_size", range(-1, MOST_GROUP), config.get("q_group_size", 128))
    for name in tensors.ending(".qweight"):
        parts = tuple(f"{name}.{part}" for part in ("qweight", "qzeros", "scales"))
        inputs, packed = tensors.shape(parts[0], ("I32",), 2)
        outputs = packed * len(ORDER)
        groups = tensors.shape(parts[2], FLOATS, 2)[0]
        tensors.expect(parts[2], FLOATS, (groups, outputs))
        tensors.expect(parts[1], ("I32",), (groups, packed))
        size = grains(tensors, parts[2], (inputs, outputs), [[group], []], FLOATS)[0]
        yield Plain(f"{name}.weight", (outputs, inputs), parts, partial(_made, tensors, parts, size))


def _made(tensors: Tensors, parts: tuple[str, ...], size: int) -> Tensor:
    qweight, qzeros, scales = (tensors.read(part) for part in parts)
    return dequantise(qweight, qzeros, scales, size)
