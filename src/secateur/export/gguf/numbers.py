"""Types of numbers in a GGUF file: which tensor gets which, and reading them back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 32  # entries of a row that are quantised together
SCALE = 2**-10  # a block's scale is rounded to f16
# Largest error of an entry, of the largest one in its block (or of itself, for floats).
ALLOWED = {
    "f32": 0.0, "f16": 2**-10, "bf16": 2**-7, "q8_0": 1 / 254 + SCALE, "q5_0": 1 / 16 + SCALE, "q5_1": 1 / 31,
    "q4_0": 1 / 8 + SCALE, "q4_1": 1 / 15,
}  # fmt: skip
FILE_TYPES = {
    "f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0",
    "q4_1": "MOSTLY_Q4_1", "q5_0": "MOSTLY_Q5_0", "q5_1": "MOSTLY_Q5_1",
}  # fmt: skip
STORED = {torch.float32: "f32", torch.float64: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def type_of(name: str, value: Tensor, asked: str) -> str:
    """The type of one tensor: matrices as asked, where their rows are whole blocks; the rest stays in fp32.

    llama.cpp multiplies by norms, biases, positions and routers in fp32.
    """
    plain = value.dim() < 2 or name.startswith(("position_embd", "rope_")) or "ffn_gate_inp" in name
    if plain:
        return "f32"
    if asked.startswith("q") and value.shape[-1] % BLOCK:
        return "f16"
    return asked


def encoded(value: Tensor, kind: str) -> tuple[Any, Any]:
    """(array, type of the package) of a tensor."""
    import gguf

    numbers = gguf.GGMLQuantizationType[kind.upper()]
    array = np.ascontiguousarray(value.float().numpy())
    if kind == "f32":
        return array, numbers
    if kind == "f16":
        return array.astype(np.float16), numbers
    return gguf.quants.quantize(array, numbers), numbers


def error_of(value: Tensor, found: Any, kind: str) -> float:
    """The largest error of an entry that was read back: of itself for floats, of its block's largest otherwise."""
    want = np.ascontiguousarray(value.float().numpy())
    gap = np.abs(want - found)
    if kind.startswith("q"):
        blocks = want.reshape(-1, BLOCK)
        scale = np.abs(blocks).max(axis=1)
        if kind.endswith("_1"):
            scale = blocks.max(axis=1) - blocks.min(axis=1)
        worst = gap.reshape(-1, BLOCK).max(axis=1)
        return float((worst / np.maximum(scale, 1e-12)).max(initial=0.0))
    return float((gap / np.maximum(np.abs(want), 6e-5)).max(initial=0.0))
