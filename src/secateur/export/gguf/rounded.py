"""A model as the numbers of a GGUF file have it, without the file: for judging a type before, or beside, an export.

Rows are rounded by the package `gguf`, which also writes the files, in the blocks that the file would have: rope's
order of q and k changes rows' places, not what is in them, and channels of zeros that fill a row change no block but
their own. What the file holds times a factor (queries of Gemma 2, attention of YaRN) has its scales rounded otherwise
there, by a thousandth at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.export.gguf.export import package
from secateur.export.gguf.numbers import BLOCK, STORED, encoded, type_of
from secateur.model.architectures import Family
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel

CONV1D = "transformer.h"  # layers whose matrices are kept as (inputs, outputs)


class Rounded(StreamedModel):
    """A checkpoint whose matrices are rounded to a type of GGUF's whenever they are read.

    Args:
        checkpoint, device, dtype: as of a `StreamedModel`.
        kind: the type, such as q8_0.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, kind: str) -> None:
        super().__init__(checkpoint, device, dtype)
        self.kind = kind

    @torch.no_grad()
    def changed(self, module: nn.Module, index: int | None = None) -> nn.Module:
        if self.kind in (STORED[self.checkpoint.dtype], "f32"):
            return module
        family = self.checkpoint.family if index is not None else None
        for name, value in module.named_parameters():
            if value.numel() and not value.is_meta:
                rows = _rows(value, family)
                found = rounded(rows, _type(name, rows, self.kind, family))
                value.copy_(found.T if rows is not value else found)
        return module


def stored_bytes(tensors: Iterable[tuple[str, Tensor]], kind: str, family: Family | None) -> float:
    """Bytes of tensors in a file of a type, by their shapes.

    Args:
        tensors: names and values, of the meta device too.
        family: of a layer's; None of those around the layers.
    """
    total = 0.0
    for name, value in tensors:
        rows = _rows(value, family)
        own = _type(name, rows, kind, family)
        lacking = -rows.shape[-1] % BLOCK if own.startswith("q") else 0
        total += entry_bytes(own) * (rows.numel() + lacking * rows.shape[:-1].numel())
    return total


def _rows(value: Tensor, family: Family | None) -> Tensor:
    """A matrix as llama.cpp has it, (outputs, inputs)."""
    return value.T if family is not None and family.layers == CONV1D and value.dim() == 2 else value


def _type(name: str, rows: Tensor, kind: str, family: Family | None) -> str:
    """The type of a tensor, by the rule of the export, which fills channels up to whole blocks."""
    leaf = name.removesuffix(".weight")
    if family is not None and rows.dim() > 1 and leaf.endswith((f".{family.ffn.down}", ".experts.down_proj")):
        return kind
    return type_of(_told(name), rows, kind)


def rounded(value: Tensor, kind: str) -> Tensor:
    """What reading back gives of a tensor that was written as a type, in the tensor's own dtype, on its device."""
    if kind == "f32":
        return value
    if not kind.startswith("q"):
        return value.to(torch.float16 if kind == "f16" else torch.bfloat16).to(value.dtype)
    lacking = -value.shape[-1] % BLOCK
    array, numbers = encoded(F.pad(value.float().cpu(), (0, lacking)), kind)
    back = np.ascontiguousarray(package().quants.dequantize(array, numbers))
    whole = torch.from_numpy(back).view(*value.shape[:-1], value.shape[-1] + lacking)
    return whole[..., : value.shape[-1]].to(value.device, value.dtype)


def entry_bytes(kind: str) -> float:
    """Bytes that an entry of a matrix takes.

    >>> entry_bytes("q8_0")
    1.0625
    """
    gguf: Any = package()
    entries, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
    return float(size) / float(entries)


def _told(name: str) -> str:
    """A name by which `type_of` knows what stays in fp32: of a router, and of learned positions, llama.cpp's."""
    parts = name.split(".")
    if parts[-1] == "weight" and parts[-2:-1] in (["gate"], ["router"]):
        return "ffn_gate_inp.weight"
    return "position_embd.weight" if {"wpe", "embed_positions"} & set(parts) else name
