"""gpu.py's part for zeros: a token, and a prompt, through the Linears of all layers, in the forms that were chosen.

One layer's matrices stand for those of all layers: together they are larger than any cache. Attention over the
context, norms and the head are left out. On a CUDA device a token's work is one CUDA graph, so that launching isn't
what is timed. Where there are no kernels for zeros, everything is dense.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import InputError
from secateur.numerics.patterns import Pattern
from secateur.runtime.format import Packed, pack
from secateur.runtime.gpu import choose as gpu

BF16 = torch.bfloat16
Product = Callable[[Tensor], Tensor]
Seconds = Callable[..., float]


def masked(rows: int, columns: int, kind: float | str) -> Packed:
    """Random weights, the smallest of them zero: a share of them, or two of every four columns."""
    W = torch.randn(rows, columns, dtype=BF16)
    if isinstance(kind, str):
        return pack(W.where(Pattern.parse(kind).mask(W.abs().float()), 0))
    return pack(W.masked_fill(W.abs() < math.sqrt(2) * torch.tensor(kind).erfinv(), 0))


def products(hidden: int, ffn: int, kind: float | str, device: torch.device) -> tuple[list[Product], int, str]:
    """Of the seven Linears of a layer, as (products, bytes of their weights, how many run in which form)."""
    found: list[Product] = []
    size, forms = 0, Counter[str]()
    for (rows, columns), count in {(hidden, hidden): 4, (ffn, hidden): 2, (hidden, ffn): 1}.items():
        packed = masked(rows, columns, kind) if kind else None
        choice = gpu.DENSE if packed is None else chosen(packed, device)
        forms[choice.variant or "dense"] += count
        for _ in range(count):  # copies: one matrix for all would stay in a cache
            if packed is not None and choice.variant is not None:
                form = gpu.matrix_of(packed, None, device, choice.variant)
                found.append(form.times)
                size += form.nbytes
            else:
                W = torch.randn(rows, columns, dtype=BF16, device=device)
                found.append(partial(F.linear, weight=W))
                size += W.nbytes
    return found, size, ", ".join(f"{count} {name}" for name, count in forms.items())


def chosen(packed: Packed, device: torch.device) -> gpu.Choice:
    try:
        gpu.check(device)
    except InputError:
        return gpu.DENSE
    return gpu.choose(packed, BF16, device)


def through(linears: Sequence[Product], layers: int, x: Tensor) -> Tensor:
    q, k, v, o, gate, up, down = linears
    for _ in range(layers):
        x = x + o(q(x) + k(x) + v(x))
        x = x + down(F.silu(gate(x)) * up(x))
        x = x / x.abs().amax().clamp_min(1)
    return x


def graphed(work: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The work as a CUDA graph; itself on other devices."""
    if device.type != "cuda":
        return work
    aside, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    aside.wait_stream(current)
    with torch.cuda.stream(aside):  # Triton compiles, libraries take their memory
        for _ in range(3):
            work()
    current.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@torch.no_grad()
def zeros(shape: Any, ceiling: Any, device: torch.device, seconds: Seconds) -> list[dict[str, Any]]:
    """Decoding dense, with 50 and with 70 % zeros; prefill dense and 2:4."""
    rows = []
    token = torch.randn(1, shape.hidden, dtype=BF16, device=device)
    prompt = torch.randn(shape.length, shape.hidden, dtype=BF16, device=device)
    dense, block = 0.0, 2 * shape.block * shape.layers
    for kind in (0.0, 0.5, 0.7, "2:4"):
        linears, size, forms = products(shape.hidden, shape.ffn, kind, device)
        work = partial(through, linears, shape.layers)
        taken = seconds(graphed(partial(work, token), device), device)
        dense = dense or taken
        named = f"{kind} zeros" if isinstance(kind, str) else f"{kind:.0%} zeros"
        rows.append(
            row(f"a token through the Linears, {named} ({forms})", taken, shape.layers * size / ceiling.bytes)
        )
        rows[-1]["what"] += f", {dense / taken:.2f} times dense"
        if kind in (0.0, "2:4"):
            taken = seconds(partial(work, prompt), device)
            least = block * shape.length / ceiling.flops
            rows.append(row(f"{shape.length} tokens through the Linears, {named} ({forms})", taken, least))
        del linears, work
    return rows


def row(what: str, taken: float, least: float) -> dict[str, Any]:
    return {"what": what, "seconds": round(taken, 7), "least": round(least, 7), "share": round(least / taken, 3)}
