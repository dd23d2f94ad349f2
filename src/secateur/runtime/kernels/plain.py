"""Kernels for a bf16 matrix that has all its entries, as it lies in memory, and a few rows of x.

A processor waits for the memory here, and torch's product of bf16 doesn't read as fast as memory delivers. Vectors
are 16 wide and plain LLVM, which any processor has in some form. Columns are a multiple of 64.
"""

from __future__ import annotations

from secateur.runtime.kernels import bitmap, expand
from secateur.runtime.kernels.ir import Body, Spec
from secateur.runtime.kernels.run import DECLARATIONS, functions, take_rows

NAME = "plain"
LAYER = ("values", "bias", "bias_step", "rows", "columns")
ADDRESSES = 2  # of them
KIND = "bf16"
AHEAD = 4096  # bytes that are fetched ahead: rows follow each other, so it may be of the next one


def module(spec: Spec, openmp: bool) -> str:
    """`work`, `run` and `run_bf16` as in bitmap.py, without the kernel that unpacks."""
    body = Body()
    take_rows(body, LAYER, ADDRESSES)
    _product(body, spec)
    body.do("br label %take")
    body.label("done")
    body.do("ret void")
    around = functions(body, openmp, bitmap.widening(spec.split))
    return DECLARATIONS + expand.products(spec.lanes) + around


def _product(e: Body, spec: Spec) -> None:
    vector = f"<{spec.lanes} x float>"
    sums = [(b, a) for b in range(spec.batch) for a in range(spec.chains)]
    step = 2 * spec.lanes  # columns at a time
    e.label("row")
    e.name("%r", "phi i64 [%first, %taken], [%r_next, %row_end]")
    e.name("%w", f"getelementptr i16, ptr %values, i64 {e('mul i64 %r, %columns')}")
    e.do("br label %step")
    e.label("step")
    e.name("%c", "phi i64 [0, %row], [%c_next, %step]")
    for b, a in sums:
        e.name(f"%s_{b}_{a}", f"phi {vector} [zeroinitializer, %row], [%s_next_{b}_{a}, %step]")
    total = {key: f"%s_{key[0]}_{key[1]}" for key in sums}
    for turn, first in enumerate(range(0, 64, step)):
        here = e(f"add i64 %c, {first}") if first else "%c"
        place = e.at("%w", here, "i16")
        e.do(f"call void @llvm.prefetch.p0(ptr {e.at(place, AHEAD)}, i32 0, i32 3, i32 1)")
        for half, weights in enumerate(_weights(e, spec, place)):
            column = e(f"add i64 {here}, {half * spec.lanes}") if half else here
            for b in range(spec.batch):
                line = e(f"add i64 {column}, {e(f'mul i64 %columns, {b}')}") if b else column
                x = e.load(vector, e.at("%x", line, "float"))
                key = (b, (2 * turn + half) % spec.chains)
                operands = f"{vector} {weights}, {vector} {x}, {vector} {total[key]}"
                total[key] = e(f"call {vector} @llvm.fma.v{spec.lanes}f32({operands})")
    for b, a in sums:
        e.name(f"%s_next_{b}_{a}", f"bitcast {vector} {total[b, a]} to {vector}")
    e.name("%c_next", "add i64 %c, 64")
    e.do(f"br i1 {e('icmp ult i64 %c_next, %columns')}, label %step, label %row_end")
    e.label("row_end")
    bias = e.load("float", e.at("%bias", e("mul i64 %r, %bias_step")))
    for b in range(spec.batch):
        place = e(f"add i64 %r, {e(f'mul i64 %rows, {b}')}")
        whole = f"%s_next_{b}_0"
        for a in range(1, spec.chains):
            whole = e(f"fadd {vector} {whole}, %s_next_{b}_{a}")
        reduce = f"@llvm.vector.reduce.fadd.v{spec.lanes}f32"
        found = e(f"call reassoc float {reduce}(float {bias}, {vector} {whole})")
        e.do(f"store float {found}, ptr {e.at('%y', place, 'float')}")
    e.name("%r_next", "add i64 %r, 1")
    e.do(f"br i1 {e('icmp ult i64 %r_next, %last')}, label %row, label %row_done")
    e.label("row_done")


def _weights(e: Body, spec: Spec, place: str) -> list[str]:
    """The entries of 2 x lanes columns as floats: the even, then the odd ones."""
    n = spec.lanes
    pairs = e.load(f"<{n} x i32>", place)
    even, odd = e(f"shl <{n} x i32> {pairs}, splat (i32 16)"), e(f"and <{n} x i32> {pairs}, splat (i32 -65536)")
    return [e(f"bitcast <{n} x i32> {each} to <{n} x float>") for each in (even, odd)]
