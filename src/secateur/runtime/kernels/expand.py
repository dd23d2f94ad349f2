"""How the kept values of a word of 64 columns get to their columns: the part of the IR that variants differ in."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from secateur.runtime.kernels import shuffle
from secateur.runtime.kernels.ir import WIDTH, WORD, Body, Spec, next_word, x_address


def constant(value: float) -> str:
    """As IR spells a float32 exactly: the bits of the double that is as much."""
    single = struct.unpack(">f", struct.pack(">f", value))[0]
    return f"0x{struct.pack('>d', single).hex().upper()}"


def products(n: int) -> str:
    """What products of vectors of n floats, and their sums, call."""
    return (
        f"declare <{n} x float> @llvm.fma.v{n}f32(<{n} x float>, <{n} x float>, <{n} x float>)\n"
        f"declare float @llvm.vector.reduce.fadd.v{n}f32(float, <{n} x float>)\n"
    )


def declarations(spec: Spec) -> str:
    if spec.lanes == 1:
        return ""
    lines = [products(spec.lanes)]
    if spec.variant == "avx2":
        lines.append(shuffle.DECLARATIONS)
    else:
        lines += [
            f"declare <{m} x i{w}> @llvm.masked.expandload.v{m}i{w}(ptr, <{m} x i1>, <{m} x i{w}>)"
            for m, w in ((64, 8), (16, 8), (32, 16), (16, 16), (16, 32))
        ]
    return "\n".join(lines) + "\n"


def table(spec: Spec) -> str:
    return shuffle.table(spec) if spec.variant == "avx2" else ""


# -------------------------------------------------------------------------------------- products


def multiply(e: Body, spec: Spec) -> None:
    """One word: adds its products to the sums %s_q_b_a, giving %s_next_q_b_a and %v_next; ends in %word_end."""
    if spec.variant == "portable":
        _multiply_one_by_one(e, spec)
        return
    vector = f"<{spec.lanes} x float>"
    expand = shuffle.weights if spec.variant == "avx2" else _weights_by_loads
    weights = [expand(e, spec, bits, v) for bits, v in next_word(e, spec)]
    sums: dict[tuple[int, int, int], str] = {
        (q, b, a): f"%s_{q}_{b}_{a}" if spec.values != "int8" else "zeroinitializer"
        for q in range(spec.rows)
        for b in range(spec.batch)
        for a in range(spec.chains)
    }
    for index, column in enumerate(range(0, WORD, spec.lanes)):
        here = e(f"add i64 {e(f'mul i64 %i, {WORD}')}, {column}")
        piece = [next(row) for row in weights]
        for b in range(spec.batch):
            x = e.load(vector, x_address(e, spec, b, here))
            for q in range(spec.rows):
                key = (q, b, index % spec.chains)
                operands = f"{vector} {piece[q]}, {vector} {x}, {vector} {sums[key]}"
                sums[key] = e(f"call {vector} @llvm.fma.v{spec.lanes}f32({operands})")
    e.do("br label %word_end")
    e.label("word_end")
    scales = {q: scale_of(e, spec, q, vector) for q in range(spec.rows)} if spec.values == "int8" else {}
    for (q, b, a), total in sums.items():
        if scales:
            operands = f"{vector} {total}, {vector} {scales[q]}, {vector} %s_{q}_{b}_{a}"
            e.name(f"%s_next_{q}_{b}_{a}", f"call {vector} @llvm.fma.v{spec.lanes}f32({operands})")
        else:
            e.name(f"%s_next_{q}_{b}_{a}", f"bitcast {vector} {total} to {vector}")


def scale_of(e: Body, spec: Spec, q: int, vector: str) -> str:
    """What the int8 weights of row q of a pair are multiplied with in this word, in every lane."""
    place = e(f"add i64 %group, {e(f'mul i64 %row_{q}, %groups')}")
    scale = e.load("float", e.at("%scales", place, "float"))
    if spec.variant == "avx2":  # its int8 weights are that much larger
        scale = e(f"fmul float {scale}, {constant(2.0**-24)}")
    if spec.lanes == 1:
        return scale
    one = e(f"insertelement {vector} poison, float {scale}, i32 0")
    return e(f"shufflevector {vector} {one}, {vector} poison, <{spec.lanes} x i32> zeroinitializer")


def expanded(e: Body, bits: str, v: str, first: int, count: int, width: int) -> str:
    """`count` columns from `first` on by an expanding load: <count x i{8 width}>."""
    shifted = e(f"lshr i64 {bits}, {first}") if first else bits
    part = shifted if count == WORD else e(f"trunc i64 {shifted} to i{count}")
    mask = e(f"bitcast i{count} {part} to <{count} x i1>")
    address = v
    if first:
        before = e(f"call i64 @llvm.ctpop.i64(i64 {e(f'shl i64 {bits}, {WORD - first}')})")
        address = e.at(v, before, f"i{8 * width}")
    kind = f"<{count} x i{8 * width}>"
    name = f"@llvm.masked.expandload.v{count}i{8 * width}"
    return e(f"call {kind} {name}(ptr {address}, <{count} x i1> {mask}, {kind} zeroinitializer)")


def _weights_by_loads(e: Body, spec: Spec, bits: str, v: str) -> Iterator[str]:
    if spec.values == "bf16":  # two columns in 32 bits: the even one is shifted up, the odd one stands there already
        for first in (0, 32):
            pairs = e(f"bitcast <32 x i16> {expanded(e, bits, v, first, 32, 2)} to <16 x i32>")
            yield e(f"bitcast <16 x i32> {e(f'shl <16 x i32> {pairs}, splat (i32 16)')} to <16 x float>")
            yield e(f"bitcast <16 x i32> {e(f'and <16 x i32> {pairs}, splat (i32 -65536)')} to <16 x float>")
        return
    for first in range(0, WORD, 16):
        found = expanded(e, bits, v, first, 16, WIDTH[spec.values])
        if spec.values == "fp32":
            yield e(f"bitcast <16 x i32> {found} to <16 x float>")
        elif spec.values == "fp16":
            yield e(f"fpext <16 x half> {e(f'bitcast <16 x i16> {found} to <16 x half>')} to <16 x float>")
        else:
            yield e(f"sitofp <16 x i8> {found} to <16 x float>")


def _one_value(e: Body, spec: Spec, address: str) -> str:
    """One stored value as a float, without instructions that a processor may lack."""
    kind = f"i{8 * WIDTH[spec.values]}"
    raw = e.load(kind, address)
    if spec.values == "fp32":
        return e(f"bitcast i32 {raw} to float")
    if spec.values == "int8":
        return e(f"sitofp i8 {raw} to float")
    wide = e(f"zext i16 {raw} to i32")
    if spec.values == "bf16":
        return e(f"bitcast i32 {e(f'shl i32 {wide}, 16')} to float")
    # fp16: exponent and mantissa move into place, scaled by the difference of the biases; infinities and NaN by hand.
    sign = e(f"shl i32 {e(f'and i32 {wide}, 32768')}, 16")
    rest = e(f"shl i32 {e(f'and i32 {wide}, 32767')}, 13")
    scaled = e(f"fmul float {e(f'bitcast i32 {rest} to float')}, {constant(2.0**112)}")
    special = e(f"icmp uge i32 {rest}, {0x7C00 << 13}")
    usual = e(f"bitcast float {scaled} to i32")
    size = e(f"select i1 {special}, i32 {e(f'or i32 {rest}, 2139095040')}, i32 {usual}")
    return e(f"bitcast i32 {e(f'or i32 {size}, {sign}')} to float")


def _multiply_one_by_one(e: Body, spec: Spec) -> None:
    ((bits, v),) = next_word(e, spec)
    e.name("%base", f"mul i64 %i, {WORD}")
    e.name("%scale", f"fadd float -0.0, {scale_of(e, spec, 0, 'float') if spec.values == 'int8' else '1.0'}")
    e.do("br label %bit")
    e.label("bit")
    e.name("%left_bits", f"phi i64 [{bits}, %word], [%bits_less, %some]")
    e.name("%v_here", f"phi ptr [{v}, %word], [%v_on, %some]")
    for b in range(spec.batch):
        e.name(f"%c_{b}", f"phi float [%s_0_{b}_0, %word], [%c_on_{b}, %some]")
    e.do(f"br i1 {e('icmp eq i64 %left_bits, 0')}, label %word_end, label %some")
    e.label("some")
    column = e(f"add i64 %base, {e('call i64 @llvm.cttz.i64(i64 %left_bits, i1 true)')}")
    e.name("%bits_less", f"and i64 %left_bits, {e('sub i64 %left_bits, 1')}")
    e.name("%v_on", f"getelementptr i{8 * WIDTH[spec.values]}, ptr %v_here, i64 1")
    weight = e(f"fmul float %scale, {_one_value(e, spec, '%v_here')}")
    for b in range(spec.batch):
        product = e(f"fmul float {weight}, {e.load('float', x_address(e, spec, b, column))}")
        e.name(f"%c_on_{b}", f"fadd float %c_{b}, {product}")
    e.do("br label %bit")
    e.label("word_end")
    for b in range(spec.batch):
        e.name(f"%s_next_0_{b}_0", f"fadd float -0.0, %c_{b}")


def stored(e: Body, spec: Spec, bits: str, v: str) -> Iterator[tuple[int, str, str]]:
    """(first column, type, vector) of each piece of a word."""
    if spec.variant == "avx2":
        yield from shuffle.stored(e, spec, bits, v)
        return
    width = WIDTH[spec.values]
    count = 64 // width
    for first in range(0, WORD, count):
        yield first, f"<{count} x i{8 * width}>", expanded(e, bits, v, first, count, width)
