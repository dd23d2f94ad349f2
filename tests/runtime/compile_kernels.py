"""`python -m tests.runtime.compile_kernels`: bytes of machine code of each kernel, for cards that needn't be here."""

from __future__ import annotations

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from secateur.runtime.gpu import kernels
from secateur.runtime.gpu.matrix import FEW, MOST, TILES

POINTERS = {"bitmap": "*u8", "starts": "*i64", "bias": "*fp32"}
CARDS = (80, 90)


def size(kernel: object, dtype: str, card: int, **constants: int | bool) -> int:
    types = POINTERS | dict.fromkeys(("values", "x", "y", "out"), f"*{dtype}")
    names = kernel.arg_names  # type: ignore[attr-defined]
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    made = triton.compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", card, 32))
    return len(made.asm["cubin"])


def main() -> None:
    found = {}
    for card in CARDS:
        tile = dict(zip(("ROWS", "BYTES"), TILES[0], strict=True))
        few = dict(zip(("ROWS", "BYTES"), FEW, strict=True))
        found[f"gemv {card}"] = size(kernels.gemv, "bf16", card, **tile, BIAS=False)
        found[f"gemv fp16 {card}"] = size(kernels.gemv, "fp16", card, **tile, BIAS=True)
        found[f"gemm {card}"] = size(kernels.gemm, "bf16", card, **few, COUNT=MOST, BIAS=True)
        found[f"unpack {card}"] = size(kernels.unpack, "bf16", card, **tile)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
