"""How the kept values of a word of 64 columns get to their columns: the part of the IR that variants differ in."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from secateur.runtime.ir import AHEAD, WIDTH, WORD, Body, Spec, x_address


def _constant(value: float) -> str:
    """As IR spells a float exactly: the bits of the double."""
    return f"0x{struct.pack('>d', value).hex().upper()}"


def declarations(spec: Spec) -> str:
    n = spec.lanes
    if n == 1:
        return ""
    lines = [
        f"declare <{n} x float> @llvm.fma.v{n}f32(<{n} x float>, <{n} x float>, <{n} x float>)",
        f"declare float @llvm.vector.reduce.fadd.v{n}f32(float, <{n} x float>)",
    ]
    if spec.variant == "avx2":
        lines += [
            "declare <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8>, <32 x i8>)",
            "declare <16 x i8> @llvm.x86.ssse3.pshuf.b.128(<16 x i8>, <16 x i8>)",
            "declare <8 x i32> @llvm.x86.avx2.permd(<8 x i32>, <8 x i32>)",
        ]
    else:
        lines += [
            f"declare <{m} x i{w}> @llvm.masked.expandload.v{m}i{w}(ptr, <{m} x i1>, <{m} x i{w}>)"
            for m, w in ((64, 8), (16, 8), (32, 16), (16, 16), (16, 32))
        ]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------ the table of avx2


def _entry(bits: int, spec: Spec) -> list[int]:
    """The shuffle that spreads values to the set bits of a byte."""
    width = WIDTH[spec.values]
    spread = spec.batch > 0 and spec.values in ("bf16", "int8")  # straight into 4 bytes a column
    out: list[int] = []
    source = 0
    for column in range(8):
        here = bool(bits >> column & 1)
        if spec.values == "fp32":  # an index for vpermd, whose sign says that the column is kept
            out += [source, 0, 0, 0x80] if here else [0, 0, 0, 0]
        else:
            taken = [width * source + byte for byte in range(width)] if here else [0x80] * width
            out += [0x80] * (4 - width) + taken if spread else taken
        source += here
    return out


def _entry_bytes(spec: Spec) -> int:
    return len(_entry(0, spec))


def table(spec: Spec) -> str:
    if spec.variant != "avx2":
        return ""
    content = "".join(f"\\{byte:02X}" for bits in range(256) for byte in _entry(bits, spec))
    return f'@table = private constant [{256 * _entry_bytes(spec)} x i8] c"{content}", align 64\n'


def _spread(e: Body, spec: Spec, bits: str, v: str, g: int) -> str:
    """Columns 8g to 8g + 7 of a word: a vector of 8 entries as the table lays them out."""
    size = _entry_bytes(spec)
    shift = size.bit_length() - 1 - 8 * g
    scaled = bits if shift == 0 else e(f"{'shl' if shift > 0 else 'lshr'} i64 {bits}, {abs(shift)}")
    control_address = e.at("@table", e(f"and i64 {scaled}, {255 * size}"))
    address = v
    if g:  # values before this byte's: the bits below it, counted
        before = e(f"call i64 @llvm.ctpop.i64(i64 {e(f'shl i64 {bits}, {WORD - 8 * g}')})")
        address = e.at(v, before, f"i{8 * WIDTH[spec.values]}")
    if spec.values == "fp32":
        control, values = e.load("<8 x i32>", control_address), e.load("<8 x i32>", address)
        moved = e(f"call <8 x i32> @llvm.x86.avx2.permd(<8 x i32> {values}, <8 x i32> {control})")
        return e(f"and <8 x i32> {moved}, {e(f'ashr <8 x i32> {control}, splat (i32 31)')}")
    values = e.load("<16 x i8>", address)
    if size == 32:
        twice = ", ".join(f"i32 {j % 16}" for j in range(32))
        values = e(f"shufflevector <16 x i8> {values}, <16 x i8> poison, <32 x i32> <{twice}>")
        control = e.load("<32 x i8>", control_address)
        return e(f"call <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8> {values}, <32 x i8> {control})")
    control = e.load(f"<{size} x i8>", control_address)
    if size == 8:
        wide = ", ".join(f"i32 {j}" for j in range(16))
        control = e(f"shufflevector <8 x i8> {control}, <8 x i8> zeroinitializer, <16 x i32> <{wide}>")
    return e(f"call <16 x i8> @llvm.x86.ssse3.pshuf.b.128(<16 x i8> {values}, <16 x i8> {control})")


# -------------------------------------------------------------------------------------- products


def multiply(e: Body, spec: Spec) -> None:
    """One word: adds its products to the sums %s_q_b_a, giving %s_next_q_b_a and %v_next_q; ends in %word_end."""
    if spec.variant == "portable":
        _multiply_one_by_one(e, spec)
        return
    vector = f"<{spec.lanes} x float>"
    bits, weights = {}, {}
    for q in range(spec.rows):
        bits[q] = next_word(e, spec, q)
        weights[q] = _weights(e, spec, bits[q], f"%v_{q}")
    sums: dict[tuple[int, int, int], str] = {
        (q, b, a): f"%s_{q}_{b}_{a}" if spec.values != "int8" else "zeroinitializer"
        for q in range(spec.rows)
        for b in range(spec.batch)
        for a in range(spec.chains)
    }
    for index, column in enumerate(range(0, WORD, spec.lanes)):
        here = e(f"add i64 {e(f'mul i64 %i, {WORD}')}, {column}")
        piece = {q: next(weights[q]) for q in weights}
        for b in range(spec.batch):
            x = e.load(vector, x_address(e, spec, b, here))
            for q in range(spec.rows):
                key = (q, b, index % spec.chains)
                operands = f"{vector} {piece[q]}, {vector} {x}, {vector} {sums[key]}"
                sums[key] = e(f"call {vector} @llvm.fma.v{spec.lanes}f32({operands})")
    e.do("br label %word_end")
    e.label("word_end")
    scales = {q: _scale(e, spec, q, vector) for q in range(spec.rows)} if spec.values == "int8" else {}
    for (q, b, a), total in sums.items():
        if scales:
            operands = f"{vector} {total}, {vector} {scales[q]}, {vector} %s_{q}_{b}_{a}"
            e.name(f"%s_next_{q}_{b}_{a}", f"call {vector} @llvm.fma.v{spec.lanes}f32({operands})")
        else:
            e.name(f"%s_next_{q}_{b}_{a}", f"bitcast {vector} {total} to {vector}")


def next_word(e: Body, spec: Spec, q: int) -> str:
    """The bits of a row's word; advances %v_q to %v_next_q, and asks for values further on."""
    bits = e.load("i64", e.at(f"%bits_{q}", "%i", "i64"))
    count = e(f"call i64 @llvm.ctpop.i64(i64 {bits})")
    e.name(f"%v_next_{q}", f"getelementptr i{8 * WIDTH[spec.values]}, ptr %v_{q}, i64 {count}")
    for ahead in AHEAD:
        e.do(f"call void @llvm.prefetch.p0(ptr {e.at(f'%v_{q}', ahead)}, i32 0, i32 2, i32 1)")
    return bits


def _scale(e: Body, spec: Spec, q: int, vector: str) -> str:
    group = e("udiv i64 %i, %group_words")
    place = e(f"add i64 {group}, {e(f'mul i64 %row_{q}, %groups')}")
    scale = e.load("float", e.at("%scales", place, "float"))
    if spec.variant == "avx2":  # its int8 values stand in the top byte of an int32
        scale = e(f"fmul float {scale}, {_constant(2.0**-24)}")
    if spec.lanes == 1:
        return scale
    one = e(f"insertelement {vector} poison, float {scale}, i32 0")
    return e(f"shufflevector {vector} {one}, {vector} poison, <{spec.lanes} x i32> zeroinitializer")


def _weights(e: Body, spec: Spec, bits: str, v: str) -> Iterator[str]:
    """The word's weights as vectors of float32, in the order of columns."""
    if spec.variant == "avx512":
        yield from _weights_by_loads(e, spec, bits, v)
        return
    for g in range(WORD // 8):
        found = _spread(e, spec, bits, v, g)
        if spec.values == "bf16":
            yield e(f"bitcast <32 x i8> {found} to <8 x float>")
        elif spec.values == "fp32":
            yield e(f"bitcast <8 x i32> {found} to <8 x float>")
        elif spec.values == "fp16":
            yield e(f"fpext <8 x half> {e(f'bitcast <16 x i8> {found} to <8 x half>')} to <8 x float>")
        else:
            yield e(f"sitofp <8 x i32> {e(f'bitcast <32 x i8> {found} to <8 x i32>')} to <8 x float>")


def _expanded(e: Body, bits: str, v: str, first: int, count: int, width: int) -> str:
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
            pairs = e(f"bitcast <32 x i16> {_expanded(e, bits, v, first, 32, 2)} to <16 x i32>")
            yield e(f"bitcast <16 x i32> {e(f'shl <16 x i32> {pairs}, splat (i32 16)')} to <16 x float>")
            yield e(f"bitcast <16 x i32> {e(f'and <16 x i32> {pairs}, splat (i32 -65536)')} to <16 x float>")
        return
    for first in range(0, WORD, 16):
        found = _expanded(e, bits, v, first, 16, WIDTH[spec.values])
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
    scaled = e(f"fmul float {e(f'bitcast i32 {rest} to float')}, {_constant(2.0**112)}")
    special = e(f"icmp uge i32 {rest}, {0x7C00 << 13}")
    usual = e(f"bitcast float {scaled} to i32")
    size = e(f"select i1 {special}, i32 {e(f'or i32 {rest}, 2139095040')}, i32 {usual}")
    return e(f"bitcast i32 {e(f'or i32 {size}, {sign}')} to float")


def _multiply_one_by_one(e: Body, spec: Spec) -> None:
    bits = e.load("i64", e.at("%bits_0", "%i", "i64"))
    e.name("%base", f"mul i64 %i, {WORD}")
    e.name("%scale", f"fadd float -0.0, {_scale(e, spec, 0, 'float') if spec.values == 'int8' else '1.0'}")
    e.do("br label %bit")
    e.label("bit")
    e.name("%bits", f"phi i64 [{bits}, %word], [%bits_less, %some]")
    e.name("%v_here", "phi ptr [%v_0, %word], [%v_on, %some]")
    for b in range(spec.batch):
        e.name(f"%c_{b}", f"phi float [%s_0_{b}_0, %word], [%c_on_{b}, %some]")
    e.do(f"br i1 {e('icmp eq i64 %bits, 0')}, label %word_end, label %some")
    e.label("some")
    column = e(f"add i64 %base, {e('call i64 @llvm.cttz.i64(i64 %bits, i1 true)')}")
    e.name("%bits_less", f"and i64 %bits, {e('sub i64 %bits, 1')}")
    e.name("%v_on", f"getelementptr i{8 * WIDTH[spec.values]}, ptr %v_here, i64 1")
    weight = e(f"fmul float %scale, {_one_value(e, spec, '%v_here')}")
    for b in range(spec.batch):
        product = e(f"fmul float {weight}, {e.load('float', x_address(e, spec, b, column))}")
        e.name(f"%c_on_{b}", f"fadd float %c_{b}, {product}")
    e.do("br label %bit")
    e.label("word_end")
    e.name("%v_next_0", "getelementptr i8, ptr %v_here, i64 0")
    for b in range(spec.batch):
        e.name(f"%s_next_0_{b}_0", f"fadd float -0.0, %c_{b}")


def stored(e: Body, spec: Spec, bits: str) -> Iterator[tuple[int, str, str]]:
    """(first column, type, vector) of each piece of a word."""
    width = WIDTH[spec.values]
    if spec.variant == "avx512":
        count = 64 // width
        for first in range(0, WORD, count):
            yield first, f"<{count} x i{8 * width}>", _expanded(e, bits, "%v_0", first, count, width)
        return
    for g in range(WORD // 8):
        found = _spread(e, spec, bits, "%v_0", g)
        if width == 1:
            low = ", ".join(f"i32 {j}" for j in range(8))
            found = e(f"shufflevector <16 x i8> {found}, <16 x i8> poison, <8 x i32> <{low}>")
        yield 8 * g, {1: "<8 x i8>", 2: "<16 x i8>", 4: "<8 x i32>"}[width], found
