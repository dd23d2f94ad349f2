"""FP8 with scales: w = q * scale, one scale per tensor, per row or per block (DeepSeek-V3, arXiv 2412.19437, 3.3.2).

`NAME` is stored as float8 beside `NAME_scale_inv` (in spite of its name it's multiplied by), or `NAME_scale` as
fbgemm and vLLM have it. Blocks at the edges are cut short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from secateur.model.containers.scales import grains, spread
from secateur.model.containers.tensors import FLOAT8, Plain, Tensors
from secateur.model.json_files import Json

SCALES = ("_scale_inv", "_scale")


def dequantise(weight: Tensor, scale: Tensor, grains: Sequence[int]) -> Tensor:
    """w = q * scale, fp32, in the shape of `weight`."""
    return weight.float() * spread(scale, weight.shape, grains)


def plan(tensors: Tensors, config: Json) -> Iterator[Plain]:
    block = config.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list) and len(block) == 2 and all(type(n) is int and 0 < n <= 2**16 for n in block)
    ):
        raise tensors.bad(f"weight_block_size is {str(block)[:40]}, not two widths such as [128, 128]")
    named = [[n] for n in block] if block else [[], []]
    for name in tensors.ending("", FLOAT8):
        shape = tensors.shape(name, FLOAT8)
        scale = next((name + end for end in SCALES if name + end in tensors), None)
        if scale is None:
            raise tensors.wrong(name, f"has no scale ({name}{SCALES[0]})")
        sizes = grains(tensors, scale, shape, named[-len(shape) :])
        yield Plain(name, shape, (name, scale), partial(_made, tensors, name, scale, sizes))


def _made(tensors: Tensors, name: str, scale: str, sizes: Sequence[int]) -> Tensor:
    return dequantise(tensors.read(name), tensors.read(scale), sizes)
