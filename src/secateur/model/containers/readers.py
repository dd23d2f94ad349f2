"""Which quantised checkpoints are read: a row for each `quant_method` that config.json may name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from secateur.model.containers import awq, bitsandbytes, compressed_tensors, fp8, gptq, mxfp4
from secateur.model.containers.tensors import Plain, Tensors
from secateur.model.json_files import Json


class Reader(NamedTuple):
    """One family of formats.

    Args:
        title: as people call it.
        plan: what the folder's quantised tensors become, all shapes checked and no weights read.
    """

    title: str
    plan: Callable[[Tensors, Json], Iterator[Plain]]


READERS: dict[str, Reader] = {
    "fp8": Reader("FP8", fp8.plan),
    "fbgemm_fp8": Reader("FP8", fp8.plan),
    "compressed-tensors": Reader("compressed-tensors", compressed_tensors.plan),
    "mxfp4": Reader("MXFP4", mxfp4.plan),
    "gptq": Reader("GPTQ", gptq.plan),
    "awq": Reader("AWQ", awq.plan),
    "bitsandbytes": Reader("bitsandbytes", bitsandbytes.plan),
}
