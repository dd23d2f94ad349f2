"""bitsandbytes, eight bits (Dettmers et al., arXiv 2208.07339) and four (QLoRA, arXiv 2305.14314).

Eight: `weight` int8 (out, in), `SCB` (out): w = q * SCB / 127.

Four: `weight` uint8, two codes a byte, the upper half first, the matrix row by row; `weight.quant_map`, the sixteen
numbers that codes stand for (NF4's or FP4's); `weight.absmax`, the scale of each block of consecutive numbers, which
may be quantised itself (`nested_*`, and an offset); `weight.quant_state.bitsandbytes__*`, bytes of a JSON object
with the shape and the sizes of blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from torch import Tensor

from secateur.model.containers.packing import nibbles
from secateur.model.containers.tensors import FLOATS, Plain, Tensors
from secateur.model.json_files import Json

STATE = ".quant_state.bitsandbytes__"
MOST_STATE = 4096  # bytes
CODES = 16


@dataclass(frozen=True)
class State:
    """What is said of a matrix of four bits."""

    shape: tuple[int, ...]
    block: int
    nested_block: int | None
    offset: float


def dequantise_8bit(weight: Tensor, row: Tensor) -> Tensor:
    """fp32 (out, in); `row`: (out), the largest weight of each."""
    return weight.float() * (row.float() / 127).view(-1, 1)


def dequantise_4bit(packed: Tensor, codebook: Tensor, absmax: Tensor, state: State) -> Tensor:
    """fp32 in the shape that `state` says; `absmax`: fp32, one for each block."""
    count = prod(state.shape)
    values = codebook.float()[nibbles(packed.flatten(), low_first=False)][:count]
    return (values * absmax.repeat_interleave(state.block)[:count]).view(state.shape)


def plan(tensors: Tensors, config: Json) -> Iterator[Plain]:
    del config  # the tensors say more
    for name in tensors.ending(".SCB"):
        weight, row, form = f"{name}.weight", f"{name}.SCB", f"{name}.weight_format"
        shape = tensors.shape(weight, ("I8",), 2)
        tensors.expect(row, FLOATS, shape[:1])
        parts: tuple[str, ...] = (weight, row)
        if form in tensors:
            if tensors.shape(form, ("U8",)) not in ((), (1,)) or int(tensors.read(form)) != 0:
                raise tensors.wrong(form, "says a layout that is not read; rows, 0, are")
            parts = (*parts, form)
        yield Plain(weight, shape, parts, partial(_eight, tensors, weight, row))
    for name, key in sorted(_states(tensors).items()):
        yield _four(tensors, name, key)


def _eight(tensors: Tensors, weight: str, row: str) -> Tensor:
    return dequantise_8bit(tensors.read(weight), tensors.read(row))


def _states(tensors: Tensors) -> dict[str, str]:
    """Matrix of four bits -> the tensor that tells of it."""
    return {name.partition(STATE)[0]: name for name in tensors.headers if STATE in name}


def _four(tensors: Tensors, name: str, key: str) -> Plain:
    state = _read_state(tensors, key)
    count = prod(state.shape)
    if prod(tensors.shape(name, ("U8",))) != -(-count // 2):
        raise tensors.wrong(name, f"doesn't hold {count} numbers of four bits")
    blocks = -(-count // state.block)
    parts = [name, key, f"{name}.quant_map", f"{name}.absmax"]
    tensors.expect(parts[2], FLOATS, (CODES,))
    if state.nested_block is None:
        tensors.expect(parts[3], FLOATS, (blocks,))
    else:
        tensors.expect(parts[3], ("U8",), (blocks,))
        parts += [f"{name}.nested_absmax", f"{name}.nested_quant_map"]
        tensors.expect(parts[4], FLOATS, (-(-blocks // state.nested_block),))
        tensors.expect(parts[5], FLOATS, (256,))
    return Plain(name, state.shape, tuple(parts), partial(_made, tensors, tuple(parts), state))


def _made(tensors: Tensors, parts: tuple[str, ...], state: State) -> Tensor:
    packed, _, codebook, absmax, *nested = (tensors.read(part) for part in parts)
    if state.nested_block is not None:
        outer, inner = nested
        scale = outer.float().repeat_interleave(state.nested_block)[: len(absmax)]
        absmax = inner.float()[absmax.long()] * scale + state.offset
    return dequantise_4bit(packed, codebook, absmax.float(), state)


def _read_state(tensors: Tensors, key: str) -> State:
    (size,) = tensors.shape(key, ("U8",), 1)
    try:
        if size > MOST_STATE:
            raise ValueError
        said = json.loads(bytes(tensors.read(key).tolist()))
        nested = "nested_blocksize" in said
        return State(
            tuple(_whole(n) for n in said["shape"]),
            _whole(said["blocksize"]),
            _whole(said["nested_blocksize"]) if nested else None,
            float(said["nested_offset"]) if nested else 0.0,
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise tensors.wrong(key, "isn't the JSON of a matrix of four bits") from None


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 < value <= 2**40:
        raise ValueError
    return value
