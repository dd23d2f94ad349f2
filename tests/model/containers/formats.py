"""Quantised matrices as their formats lay them out, and what they mean, both made number by number.

Nothing of the package is used here: numbers are put into words by arithmetic on Python's integers, and a matrix is
two loops over its formula in double precision.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.small import save_tiny

Matrix = list[list[float]]
Made = tuple[dict[str, Tensor], Matrix]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
GROUP = 8


@dataclass(frozen=True)
class Format:
    """How test code quantises: `linear` gives what is stored for a matrix (out, in), and the matrix."""

    config: dict[str, Any]
    linear: Callable[[random.Random, int, int], Made]
    beside: dict[str, Tensor] = field(default_factory=dict)  # further tensors of every Linear


def words(numbers: Sequence[int], bits: int) -> list[int]:
    """Numbers one after the other in int32 words, lowest bits first."""
    whole = sum(number << (place * bits) for place, number in enumerate(numbers))
    found = [(whole >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(numbers) * bits // 32))]
    return [word - (1 << 32) if word >> 31 else word for word in found]


def table(rows: int, columns: int, value: Callable[[int, int], float]) -> Matrix:
    return [[value(r, c) for c in range(columns)] for r in range(rows)]


def scales(rng: random.Random, rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Matrix]:
    stored = torch.tensor(table(rows, columns, lambda r, c: rng.uniform(0.01, 0.1)), dtype=dtype)
    return stored, stored.double().tolist()


def codes(rng: random.Random, rows: int, columns: int, most: int) -> list[list[int]]:
    return [[rng.randrange(most) for _ in range(columns)] for _ in range(rows)]


def gptq(bits: int, v2: bool = False, ordered: bool = True) -> Callable[[random.Random, int, int], Made]:
    def linear(rng: random.Random, out: int, inputs: int) -> Made:
        top = 1 << bits
        q, z = codes(rng, out, inputs, top), codes(rng, inputs // GROUP, out, top)
        stored, s = scales(rng, inputs // GROUP, out, torch.float16)
        group = [i // GROUP for i in range(inputs)]
        rng.shuffle(group) if ordered else None
        columns = [words(q[o], bits) for o in range(out)]
        kept = [[zero if v2 else (zero - 1) % top for zero in row] for row in z]
        tensors = {
            ".qweight": torch.tensor(columns, dtype=torch.int32).T.contiguous(),
            ".qzeros": torch.tensor([words(row, bits) for row in kept], dtype=torch.int32),
            ".scales": stored,
        }
        if ordered:
            tensors[".g_idx"] = torch.tensor(group, dtype=torch.int32)
        return tensors, table(out, inputs, lambda o, i: (q[o][i] - z[group[i]][o]) * s[group[i]][o])

    return linear


def awq(bits: int) -> Callable[..., Made]:
    def linear(rng: random.Random, out: int, inputs: int) -> Made:
        most = 1 << bits
        q, z = codes(rng, inputs, out, most), codes(rng, inputs // GROUP, out, most)
        stored, s = scales(rng, inputs // GROUP, out, torch.float16)

        def packed(row: list[int]) -> list[int]:
            if bits != 4:
                return words(row, bits)
            return [words([row[begin + k] for k in AWQ_ORDER], 4)[0] for begin in range(0, out, 8)]

        tensors = {
            ".qweight": torch.tensor([packed(row) for row in q], dtype=torch.int32),
            ".qzeros": torch.tensor([packed(row) for row in z], dtype=torch.int32),
            ".scales": stored,
        }
        return tensors, table(out, inputs, lambda o, i: (q[i][o] - z[i // GROUP][o]) * s[i // GROUP][o])

    return linear


def float8(rng: random.Random, out: int, inputs: int) -> tuple[Tensor, Matrix]:
    stored = torch.tensor(table(out, inputs, lambda o, i: rng.uniform(-8, 8))).to(torch.float8_e4m3fn)
    return stored, stored.double().tolist()


def fp8(rows: int, columns: int, end: str, dtype: torch.dtype = torch.float32) -> Callable[..., Made]:
    """FP8 with a scale for each block of so many rows and columns; 0: all of them."""

    def linear(rng: random.Random, out: int, inputs: int) -> Made:
        high, wide = rows or out, columns or inputs
        weight, q = float8(rng, out, inputs)
        stored, s = scales(rng, -(-out // high), -(-inputs // wide), dtype)
        return {".weight": weight, end: stored}, table(out, inputs, lambda o, i: q[o][i] * s[o // high][i // wide])

    return linear


def mxfp8(rng: random.Random, out: int, inputs: int) -> Made:
    """FP8 of which some neighbours of a row share a power of two."""
    weight, q = float8(rng, out, inputs)
    e = [[n + 120 for n in row] for row in codes(rng, out, -(-inputs // GROUP), 5)]
    tensors = {".weight": weight, SCALE: torch.tensor(e, dtype=torch.uint8)}
    return tensors, table(out, inputs, lambda o, i: q[o][i] * 2.0 ** (e[o][i // GROUP] - 127))


def fp4(rng: random.Random, out: int, inputs: int) -> Made:
    """Two codes a byte, the lower half first; 32 neighbours of a row share a power of two."""
    q = codes(rng, out, inputs, 16)
    halves = [[row[i] | row[i + 1] << 4 for i in range(0, inputs, 2)] for row in q]
    e = [[n + 120 for n in row] for row in codes(rng, out, -(-inputs // 32), 5)]
    scale = torch.tensor(e, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    tensors = {".weight": torch.tensor(halves, dtype=torch.uint8).view(torch.int8), ".scale": scale}
    return tensors, table(out, inputs, lambda o, i: e2m1(q[o][i]) * 2.0 ** (e[o][i // 32] - 127))


def int8(rng: random.Random, out: int, inputs: int) -> Made:
    """One scale and one zero point a row."""
    q = [[n - 128 for n in row] for row in codes(rng, out, inputs, 256)]
    z = [[n - 8 for n in row] for row in codes(rng, out, 1, 16)]
    stored, s = scales(rng, out, 1, torch.bfloat16)
    tensors = {
        ".weight": torch.tensor(q, dtype=torch.int8),
        ".weight_scale": stored / 16,
        ".weight_zero_point": torch.tensor(z, dtype=torch.int8),
    }
    return tensors, table(out, inputs, lambda o, i: (q[o][i] - z[o][0]) * s[o][0] / 16)


def packed(bits: int, asymmetric: bool, ordered: bool) -> Callable[[random.Random, int, int], Made]:
    """Groups of columns, codes moved up by half of their range."""

    def linear(rng: random.Random, out: int, inputs: int) -> Made:
        half, groups = 1 << (bits - 1), inputs // GROUP
        q, z = codes(rng, out, inputs, 2 * half), codes(rng, out, groups, 2 * half)
        stored, s = scales(rng, out, groups, torch.bfloat16)
        group = [i // GROUP for i in range(inputs)]
        rng.shuffle(group) if ordered else None
        down = [words([z[o][g] for o in range(out)], bits) for g in range(groups)]
        tensors = {
            ".weight_packed": torch.tensor([words(row, bits) for row in q], dtype=torch.int32),
            ".weight_scale": stored,
            ".weight_shape": torch.tensor([out, inputs]),
        }
        if asymmetric:
            tensors[".weight_zero_point"] = torch.tensor(down, dtype=torch.int32).T.contiguous()
        if ordered:
            tensors[".weight_g_idx"] = torch.tensor(group, dtype=torch.int32)

        def value(o: int, i: int) -> float:
            zero = z[o][group[i]] if asymmetric else half
            return (q[o][i] - zero) * s[o][group[i]]

        return tensors, table(out, inputs, value)

    return linear


def e2m1(code: int) -> float:
    return -E2M1[code - 8] if code >= 8 else E2M1[code]


def nvfp4(rng: random.Random, out: int, inputs: int) -> Made:
    """Two codes a byte, the lower half first; a float8 for 16 columns, divided by a number for the whole."""
    q = codes(rng, out, inputs, 16)
    whole = 64.0
    stored = torch.tensor(table(out, inputs // 8, lambda o, g: rng.uniform(1, 8))).to(torch.float8_e4m3fn)
    stored = stored[:, : -(-inputs // 16)].contiguous()
    s = stored.double().tolist()
    halves = [[row[i] | row[i + 1] << 4 for i in range(0, inputs, 2)] for row in q]
    tensors = {
        ".weight_packed": torch.tensor(halves, dtype=torch.uint8),
        ".weight_scale": stored,
        ".weight_global_scale": torch.tensor([whole]),
    }
    return tensors, table(out, inputs, lambda o, i: e2m1(q[o][i]) * s[o][i // 16] / whole)


def mxfp4(rng: random.Random, out: int, inputs: int) -> Made:
    """An expert: 32 columns share a power of two."""
    q, e = codes(rng, out, inputs, 16), [[n + 120 for n in row] for row in codes(rng, out, inputs // 32, 5)]
    halves = [[row[i] | row[i + 1] << 4 for i in range(0, inputs, 2)] for row in q]
    tensors = {
        "_blocks": torch.tensor(halves, dtype=torch.uint8).view(out, inputs // 32, 16),
        "_scales": torch.tensor(e, dtype=torch.uint8),
    }
    return tensors, table(out, inputs, lambda o, i: e2m1(q[o][i]) * 2.0 ** (e[o][i // 32] - 127))


def bnb8(rng: random.Random, out: int, inputs: int) -> Made:
    q = [[n - 127 for n in row] for row in codes(rng, out, inputs, 255)]
    stored, s = scales(rng, 1, out, torch.float32)
    tensors = {
        ".weight": torch.tensor(q, dtype=torch.int8),
        ".SCB": stored[0].clone(),
        ".weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return tensors, table(out, inputs, lambda o, i: q[o][i] * s[0][o] / 127)


def bnb4(nested: bool) -> Callable[[random.Random, int, int], Made]:
    """Blocks of 32 consecutive numbers, and of 4 of their scales where those are quantised too."""

    def linear(rng: random.Random, out: int, inputs: int) -> Made:
        count, block, outer = out * inputs, 32, 4
        q = codes(rng, 1, count, 16)[0]
        book = torch.tensor(sorted(rng.uniform(-1, 1) for _ in range(16)))
        blocks = -(-count // block)
        said = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": [out, inputs]}
        tensors = {
            ".weight": torch.tensor([[q[i] << 4 | q[i + 1]] for i in range(0, count, 2)], dtype=torch.uint8),
            ".weight.quant_map": book,
        }
        if nested:
            said |= {"nested_blocksize": outer, "nested_dtype": "float32", "nested_offset": 0.25}
            inner = codes(rng, 1, blocks, 256)[0]
            numbers = torch.tensor([rng.uniform(-1, 1) for _ in range(256)])
            sizes = torch.tensor([rng.uniform(0.01, 0.1) for _ in range(-(-blocks // outer))])
            found, outside = numbers.double().tolist(), sizes.double().tolist()
            absmax = [found[code] * outside[k // outer] + 0.25 for k, code in enumerate(inner)]
            tensors |= {
                ".weight.absmax": torch.tensor(inner, dtype=torch.uint8),
                ".weight.nested_absmax": sizes,
                ".weight.nested_quant_map": numbers,
            }
        else:
            stored = torch.tensor([rng.uniform(0.1, 1) for _ in range(blocks)])
            tensors[".weight.absmax"], absmax = stored, stored.double().tolist()
        state = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
        tensors[".weight.quant_state.bitsandbytes__nf4"] = state

        def value(o: int, i: int) -> float:
            place = o * inputs + i
            return book[q[place]].double().item() * absmax[place // block]

        return tensors, table(out, inputs, value)

    return linear


def _groups(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


SCALE = ".weight_scale"
FORMATS: dict[str, Format] = {
    "fp8 blocks": Format({"quant_method": "fp8", "weight_block_size": [8, 8]}, fp8(8, 8, ".weight_scale_inv")),
    "fp8 ragged": Format({"quant_method": "fp8", "weight_block_size": [7, 10]}, fp8(7, 10, ".weight_scale_inv")),
    "fp8 of modules": Format({"quant_method": "fp8", "weight_block_size": [8, 8]}, fp8(8, 8, ".scale")),
    "fp8 with fp4": Format({"quant_method": "fp8", "weight_block_size": [8, 8], "expert_dtype": "fp4"}, fp4),
    "fp8 tensor": Format({"quant_method": "fp8"}, fp8(0, 0, SCALE), {".input_scale": torch.tensor(0.5)}),
    "ct float": Format(_groups(num_bits=8, type="float", strategy="channel"), fp8(1, 0, SCALE, torch.bfloat16)),
    "ct block": Format(_groups(num_bits=8, block_structure=[8, 16]), fp8(8, 16, SCALE)),
    "ct int8": Format(_groups(num_bits=8, type="int", symmetric=False), int8),
    "ct int4": Format(_groups(num_bits=4, group_size=GROUP), packed(4, asymmetric=True, ordered=False)),
    "ct ordered": Format(_groups(num_bits=4, group_size=GROUP), packed(4, asymmetric=True, ordered=True)),
    "ct packed8": Format(_groups(num_bits=8, group_size=GROUP), packed(8, asymmetric=False, ordered=False)),
    "ct mxfp8": Format(_groups(num_bits=8, type="float", group_size=GROUP), mxfp8),
    "ct nvfp4": Format(_groups(num_bits=4, type="float", group_size=16), nvfp4),
    "gptq": Format({"quant_method": "gptq", "bits": 4, "group_size": GROUP}, gptq(4)),
    "gptq v2": Format(
        {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "checkpoint_format": "gptq_v2"}, gptq(8, True, False)
    ),
    "awq": Format({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, awq(4)),
    "awq 3": Format({"quant_method": "awq", "bits": 3, "group_size": GROUP, "checkpoint_format": "gemm"}, awq(3)),
    "bnb8": Format({"quant_method": "bitsandbytes", "load_in_8bit": True}, bnb8),
    "bnb4": Format({"quant_method": "bitsandbytes", "load_in_4bit": True}, bnb4(nested=False)),
    "bnb4 nested": Format({"quant_method": "bitsandbytes", "load_in_4bit": True}, bnb4(nested=True)),
}


def quantised_llama(folder: Path, name: str, **changes: Any) -> dict[str, Tensor]:
    """Writes a tiny Llama whose Linears are quantised; gives its tensors as they are meant, in double precision."""
    save_tiny(folder, **changes)
    return quantise(folder, FORMATS[name])


def quantise(folder: Path, made: Format) -> dict[str, Tensor]:
    """Replaces the Linears in the layers of a folder."""
    rng = random.Random(0)
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            base = name.removesuffix(".weight")
            tensors, matrix = made.linear(rng, *tensor.shape)
            stored |= {f"{base}{end}": part.contiguous() for end, part in {**tensors, **made.beside}.items()}
            meant[name] = torch.tensor(matrix, dtype=torch.float64)
        else:
            stored[name] = tensor
            meant[name] = tensor.double()
    rewrite(folder, stored, quantization_config=made.config)
    return meant


def rewrite(folder: Path, tensors: dict[str, Tensor], **changes: Any) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    file = folder / "config.json"
    config = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps(config), encoding="utf-8")
