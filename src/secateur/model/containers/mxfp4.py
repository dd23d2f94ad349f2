"""MXFP4 as GPT-OSS has it: experts in FP4 (E2M1), 32 neighbours of a row sharing a power of two.

OCP Microscaling Formats (MX) v1.0. `NAME_blocks` is (experts, out, in / 32, 16) bytes of two codes, the lower half
first, and `NAME_scales` (experts, out, in / 32) exponents with 127 for one. The model multiplies by the transposed
matrix, (experts, in, out), and so it's stored when it isn't quantised.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from secateur.model.containers.packing import E2M1, nibbles, power_of_two
from secateur.model.containers.tensors import Plain, Tensors
from secateur.model.json_files import Json

BYTES = 16  # of 32 codes, which share an exponent


def dequantise(blocks: Tensor, scales: Tensor) -> Tensor:
    """bf16 (experts, in, out), without rounding: E2M1 times a power of two is exact in it."""
    values = torch.tensor(E2M1)[nibbles(blocks)] * power_of_two(scales)[..., None]
    return values.flatten(-2).transpose(-1, -2).to(torch.bfloat16)


def plan(tensors: Tensors, config: Json) -> Iterator[Plain]:
    del config  # which only names what isn't quantised
    for name in tensors.ending("_blocks"):
        blocks, scales = f"{name}_blocks", f"{name}_scales"
        experts, rows, groups, size = tensors.shape(blocks, ("U8",), 4)
        if size != BYTES:
            raise tensors.wrong(blocks, f"has {size} bytes in a block, not {BYTES}")
        tensors.expect(scales, ("U8",), (experts, rows, groups))
        shape = (experts, groups * BYTES * 2, rows)
        yield Plain(name, shape, (blocks, scales), partial(_made, tensors, blocks, scales))


def _made(tensors: Tensors, blocks: str, scales: str) -> Tensor:
    parts = zip(tensors.read(blocks), tensors.read(scales), strict=True)  # an expert at a time, for the memory
    return torch.stack([dequantise(*part) for part in parts])
