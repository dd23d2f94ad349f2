"""Products of int8 weights with x in bytes too, on AVX-512 VNNI: `vnni`, a variant of the kernels of bitmap.py.

An instruction multiplies 64 bytes by 64 and adds four neighbours up; its first factor has no sign. So x becomes
u = round(127 x / m) + 128, where m is the largest of the four neighbours, and what 128 adds is taken off again.
Scales for more than four columns would save nothing: a sum of four has a lane to itself, and so has its scale. x
comes as (batch, columns) bytes, and after them (batch, columns / 4) scales in float32.
"""

from __future__ import annotations

from secateur.runtime.kernels.expand import constant, scale_of
from secateur.runtime.kernels.ir import WORD, Body, Spec, next_word

NAME = "vnni"
NEEDS = ("avx512vnni",)  # beside what the variant avx512 needs
_LANES, _NEIGHBOURS = 16, 4
_SMALLEST = 1e-36  # the reciprocal of less overflows
_FLOATS, _INTS, _BYTES = f"<{_LANES} x float>", f"<{_LANES} x i32>", f"<{WORD} x i8>"
DECLARATIONS = """
declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <16 x i32>, <16 x i32>)
declare <64 x i8> @llvm.x86.avx512.mask.expand.v64i8(<64 x i8>, <64 x i8>, <64 x i1>)
declare <32 x float> @llvm.fabs.v32f32(<32 x float>)
declare <32 x float> @llvm.maxnum.v32f32(<32 x float>, <32 x float>)
declare <32 x float> @llvm.rint.v32f32(<32 x float>)
"""


def multiply(e: Body, spec: Spec) -> None:
    """One word, as expand.multiply."""
    weights, without = [], []
    for bits, v in next_word(e, spec):
        found = e(f"bitcast {_BYTES} {_expanded(e, bits, v)} to {_INTS}")
        offset = _dot(e, "zeroinitializer", f"splat (i32 {_signed(0x80808080)})", found)
        weights.append(found)
        without.append(e(f"sub {_INTS} zeroinitializer, {offset}"))
    scales = [scale_of(e, spec, q, _FLOATS) for q in range(spec.rows)]
    sums: dict[tuple[int, int], str] = {}
    for b in range(spec.batch):
        first = e(f"add i64 {e(f'mul i64 %i, {WORD}')}, {e(f'mul i64 %columns, {b}')}")
        after = e(f"add i64 {first}, {e(f'mul i64 %columns, {spec.batch}')}")
        x, scale_x = e.load(_INTS, e.at("%x", first)), e.load(_FLOATS, e.at("%x", after))
        for q in range(spec.rows):
            whole = e(f"sitofp {_INTS} {_dot(e, without[q], x, weights[q])} to {_FLOATS}")
            scaled = e(f"fmul {_FLOATS} {whole}, {scale_x}")
            operands = f"{_FLOATS} {scaled}, {_FLOATS} {scales[q]}, {_FLOATS} %s_{q}_{b}_0"
            sums[q, b] = e(f"call {_FLOATS} @llvm.fma.v{_LANES}f32({operands})")
    e.do("br label %word_end")
    e.label("word_end")
    for (q, b), total in sums.items():
        e.name(f"%s_next_{q}_{b}_0", f"bitcast {_FLOATS} {total} to {_FLOATS}")


def bring() -> str:
    """32 bf16 entries at %from as bytes in %x32, and their scales after all bytes."""
    e, kind = Body(), "<32 x float>"
    wide = e(f"zext <32 x i16> {e.load('<32 x i16>', '%from')} to <32 x i32>")
    x = e(f"bitcast <32 x i32> {e(f'shl <32 x i32> {wide}, splat (i32 16)')} to {kind}")
    largest = e(f"call {kind} @llvm.fabs.v32f32({kind} {x})")
    unsound = e(f"fmul {kind} {x}, zeroinitializer")  # NaN where x isn't finite, and it has to stay that
    for distance in (1, 2):
        order = ", ".join(f"i32 {lane ^ distance}" for lane in range(32))
        other = e(f"shufflevector {kind} {largest}, {kind} poison, <32 x i32> <{order}>")
        largest = e(f"call {kind} @llvm.maxnum.v32f32({kind} {largest}, {kind} {other})")
        other = e(f"shufflevector {kind} {unsound}, {kind} poison, <32 x i32> <{order}>")
        unsound = e(f"fadd {kind} {unsound}, {other}")
    none = e(f"fcmp olt {kind} {largest}, splat (float {constant(_SMALLEST)})")
    inverse = e(f"fdiv {kind} splat (float 127.0), {largest}")
    inverse = e(f"select <32 x i1> {none}, {kind} zeroinitializer, {kind} {inverse}")
    rounded = e(f"call {kind} @llvm.rint.v32f32({kind} {e(f'fmul {kind} {x}, {inverse}')})")
    whole = e(f"freeze <32 x i32> {e(f'fptosi {kind} {rounded} to <32 x i32>')}")
    found = e(f"trunc <32 x i32> {e(f'add <32 x i32> {whole}, splat (i32 128)')} to <32 x i8>")
    e.do(f"store <32 x i8> {found}, ptr {e.at('%x32', '%i')}, align 1")
    scale = e(f"fmul {kind} {largest}, splat (float {constant(1 / 127)})")
    scale = e(f"fadd {kind} {scale}, {unsound}")
    lanes = ", ".join(f"i32 {lane}" for lane in range(0, 32, _NEIGHBOURS))
    few = e(f"shufflevector {kind} {scale}, {kind} poison, <8 x i32> <{lanes}>")
    e.do(f"store <8 x float> {few}, ptr {e.at(e.at('%x32', '%inputs'), '%i')}, align 1")
    return "\n".join(e.lines)


def _expanded(e: Body, bits: str, v: str) -> str:
    """The values of a word in their columns, 0 where there's none."""
    # From a register: an expanding load takes three times as long on a Zen 4, and LLVM would make one of both steps.
    found = e(f'call {_BYTES} asm "", "=v,0"({_BYTES} {e.load(_BYTES, v)})')
    mask = e(f"bitcast i64 {bits} to <64 x i1>")
    operands = f"{_BYTES} {found}, {_BYTES} zeroinitializer, <64 x i1> {mask}"
    return e(f"call {_BYTES} @llvm.x86.avx512.mask.expand.v64i8({operands})")


def _dot(e: Body, start: str, x: str, weights: str) -> str:
    """Adds the products of 64 bytes without a sign and 64 with one, four by four, to 16 numbers."""
    operands = f"{_INTS} {start}, {_INTS} {x}, {_INTS} {weights}"
    return e(f"call {_INTS} @llvm.x86.avx512.vpdpbusd.512({operands})")


def _signed(bits: int) -> int:
    return bits - (1 << 32) if bits >> 31 else bits
