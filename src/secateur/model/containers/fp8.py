"""FP8 with scales: w = q * scale, one scale per tensor, per row or per block (DeepSeek-V3, arXiv 2412.19437, 3.3.2).

`NAME` is stored as float8 beside `NAME_scale_inv` (in spite of its name it's multiplied by), or `NAME_scale` as
fbgemm and vLLM have it; or `MODULE.weight` beside `MODULE.scale` (DeepSeek-V4) or `MODULE.qscale_weight` (Mistral).
Blocks at the edges are cut short. Where the configuration says `expert_dtype: fp4`, int8 tensors are two codes of FP4
a byte, the lower half first, 32 neighbours of a row sharing a scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from secateur.model.containers.packing import E2M1, nibbles
from secateur.model.containers.scales import grains, spread
from secateur.model.containers.tensors import FLOAT8, Plain, Tensors
from secateur.model.json_files import Json

SCALES = ("_scale_inv", "_scale")
OF_MODULE = (".scale", ".qscale_weight")
FP4 = "I8"  # as safetensors names what holds two codes
NEIGHBOURS = 32  # of FP4 that share a scale


def dequantise(weight: Tensor, scale: Tensor, grains: Sequence[int]) -> Tensor:
    """w = q * scale, fp32, in the shape of `weight`; int8 is twice as wide."""
    q = torch.tensor(E2M1)[nibbles(weight.view(torch.uint8))] if weight.dtype == torch.int8 else weight.float()
    return q * spread(scale, q.shape, grains)


def plan(tensors: Tensors, config: Json) -> Iterator[Plain]:
    block = config.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list) and len(block) == 2 and all(type(n) is int and 0 < n <= 2**16 for n in block)
    ):
        raise tensors.bad(f"weight_block_size is {str(block)[:40]}, not two widths such as [128, 128]")
    named = [[n] for n in block] if block else [[], []]
    packed = (FP4,) if config.get("expert_dtype") == "fp4" else ()
    for name in tensors.ending("", (*FLOAT8, *packed)):
        shape = tensors.shape(name, (*FLOAT8, *packed))
        scale = _scale(tensors, name)
        own = named
        if tensors.headers[name].dtype == FP4:
            shape, own = (*shape[:-1], 2 * shape[-1]), [[], [NEIGHBOURS]]
        sizes = grains(tensors, scale, shape, own[-len(shape) :])
        yield Plain(name, shape, (name, scale), partial(_made, tensors, name, scale, sizes))


def _scale(tensors: Tensors, name: str) -> str:
    """The name of a weight's scales."""
    module = name.removesuffix(".weight")
    ends = [name + end for end in SCALES] + [module + end for end in OF_MODULE if module != name]
    found = next((scale for scale in ends if scale in tensors), None)
    if found is None:
        raise tensors.wrong(name, f"has no scale ({ends[0]})")
    return found


def _made(tensors: Tensors, name: str, scale: str, sizes: Sequence[int]) -> Tensor:
    return dequantise(tensors.read(name), tensors.read(scale), sizes)
