"""How `avx2` brings values to their columns: by byte shuffles, whose controls come from tables of 256.

Values of one or two bytes, 16 columns at a time. Between the values of the lower 8 columns and those of the upper 8
lies a pivot: its place is the number of bits below, counted. One load around it has both, the lower ones at the end
of its first half, the upper ones at the beginning of its second. So there are two tables, for values that end and
for values that begin at the pivot; an entry sends each to its column and fills the others with zero.

Values of four bytes, 8 columns at a time, by a permutation of eight.
"""

from __future__ import annotations

from collections.abc import Iterator

from secateur.runtime.kernels.ir import WIDTH, WORD, Body, Spec

DECLARATIONS = """
declare <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8>, <32 x i8>)
declare <16 x i8> @llvm.x86.ssse3.pshuf.b.128(<16 x i8>, <16 x i8>)
declare <8 x i32> @llvm.x86.avx2.permd(<8 x i32>, <8 x i32>)
"""
_NOTHING = 0x80  # the control that gives a zero


def _entry(bits: int, spec: Spec, ends: bool) -> list[int]:
    """The bytes that 8 columns take, for the values of the set bits; they end or begin at the pivot."""
    out: list[int] = []
    width = WIDTH[spec.values]
    source = 8 - bits.bit_count() if ends else 0
    if width == 1 and not ends:
        source = 8  # a shuffle takes from all 16 values that are loaded
    for column in range(8):
        here = bool(bits >> column & 1)
        if width == 4:  # an index for vpermd, whose sign says that the column is kept
            out += [source, 0, 0, _NOTHING] if here else [0, 0, 0, 0]
        else:
            spread = [_NOTHING] * 3 if _spread(spec) else []
            out += spread + [width * source + byte if here else _NOTHING for byte in range(width)]
        source += here
    return out


def _spread(spec: Spec) -> bool:
    """Whether values of one byte go to the top of 32 bits, which then are 2^24 times as much."""
    return spec.values == "int8" and spec.batch > 0


def table(spec: Spec) -> str:
    sides = (False,) if spec.values == "fp32" else (True, False)
    content = [byte for ends in sides for bits in range(256) for byte in _entry(bits, spec, ends)]
    text = "".join(f"\\{byte:02X}" for byte in content)
    return f'@table = private constant [{len(content)} x i8] c"{text}", align 64\n'


def _control(e: Body, bits: str, g: int, kind: str, size: int, second: bool = False) -> str:
    """The table's entry, of `size` bytes, for columns 8g to 8g + 7 of a word."""
    shift = size.bit_length() - 1 - 8 * g
    scaled = bits
    if shift > 0:
        scaled = e(f"shl i64 {bits}, {shift}")
    elif shift:  # LLVM would copy, then shift
        scaled = e(f'call i64 asm "rorx $2, $1, $0", "=r,r,i"(i64 {bits}, i64 {-shift})')
    entry = e.at("@table", e(f"and i64 {scaled}, {255 * size}"))
    return e.load(kind, e.at(entry, 256 * size) if second else entry)


def _below(e: Body, bits: str, column: int) -> str:
    """How many bits are set below a column."""
    return e(f"call i64 @llvm.ctpop.i64(i64 {e(f'and i64 {bits}, {(1 << column) - 1}')})")


def _around_pivot(e: Body, spec: Spec, bits: str, v: str, g: int) -> str:
    """The values of columns 8g to 8g + 15 of a word, side by side."""
    width = WIDTH[spec.values]
    pivot = e.at(v, _below(e, bits, 8 * (g + 1)), f"i{8 * width}")
    return e.load(f"<{16 * width} x i8>", e.at(pivot, -8 * width))


def _sixteen(e: Body, spec: Spec, bits: str, v: str, g: int) -> str:
    """Columns 8g to 8g + 15 of a word as they were: <32 x i8> for two bytes each, <16 x i8> for one."""
    source = _around_pivot(e, spec, bits, v, g)
    if WIDTH[spec.values] == 2:
        order = ", ".join(f"i32 {j}" for j in range(32))
        halves = [_control(e, bits, g + k, "<16 x i8>", 16, bool(k)) for k in (0, 1)]
        control = e(f"shufflevector <16 x i8> {halves[0]}, <16 x i8> {halves[1]}, <32 x i32> <{order}>")
        return e(f"call <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8> {source}, <32 x i8> {control})")
    low, high = (_control(e, bits, g + k, "i64", 8, bool(k)) for k in (0, 1))
    both = e(f"insertelement <2 x i64> poison, i64 {low}, i32 0")
    both = e(f"insertelement <2 x i64> {both}, i64 {high}, i32 1")
    control = e(f"bitcast <2 x i64> {both} to <16 x i8>")
    return e(f"call <16 x i8> @llvm.x86.ssse3.pshuf.b.128(<16 x i8> {source}, <16 x i8> {control})")


def _eight(e: Body, bits: str, v: str, g: int) -> str:
    """Columns 8g to 8g + 7 of a word of float32 values: <8 x i32>."""
    address = e.at(v, _below(e, bits, 8 * g), "i32") if g else v
    control, values = _control(e, bits, g, "<8 x i32>", 32), e.load("<8 x i32>", address)
    moved = e(f"call <8 x i32> @llvm.x86.avx2.permd(<8 x i32> {values}, <8 x i32> {control})")
    return e(f"and <8 x i32> {moved}, {e(f'ashr <8 x i32> {control}, splat (i32 31)')}")


def stored(e: Body, spec: Spec, bits: str, v: str) -> Iterator[tuple[int, str, str]]:
    """(first column, type, vector) of each piece of a word."""
    width = WIDTH[spec.values]
    for g in range(0, WORD // 8, 1 if width == 4 else 2):
        if width == 4:
            yield 8 * g, "<8 x i32>", _eight(e, bits, v, g)
        else:
            yield 8 * g, f"<{16 * width} x i8>", _sixteen(e, spec, bits, v, g)


def weights(e: Body, spec: Spec, bits: str, v: str) -> Iterator[str]:
    """The word's weights as <8 x float>: in the order of columns; for bf16 of each 16 the even, then the odd ones.

    Those of int8 are 2^24 times as large.
    """
    if spec.values == "int8":
        yield from _spread_weights(e, spec, bits, v)
        return
    for _, _, found in stored(e, spec, bits, v):
        if spec.values == "fp32":
            yield e(f"bitcast <8 x i32> {found} to <8 x float>")
        elif spec.values == "bf16":  # two columns in 32 bits: the even one is shifted up, the odd one stands there
            pairs = e(f"bitcast <32 x i8> {found} to <8 x i32>")
            yield e(f"bitcast <8 x i32> {e(f'shl <8 x i32> {pairs}, splat (i32 16)')} to <8 x float>")
            yield e(f"bitcast <8 x i32> {e(f'and <8 x i32> {pairs}, splat (i32 -65536)')} to <8 x float>")
        else:
            whole = e(f"bitcast <32 x i8> {found} to <16 x half>")
            for first in (0, 8):
                order = ", ".join(f"i32 {first + j}" for j in range(8))
                part = e(f"shufflevector <16 x half> {whole}, <16 x half> poison, <8 x i32> <{order}>")
                yield e(f"fpext <8 x half> {part} to <8 x float>")


def _spread_weights(e: Body, spec: Spec, bits: str, v: str) -> Iterator[str]:
    twice = ", ".join(f"i32 {j % 16}" for j in range(32))
    for g in range(0, WORD // 8, 2):
        source = _around_pivot(e, spec, bits, v, g)
        source = e(f"shufflevector <16 x i8> {source}, <16 x i8> poison, <32 x i32> <{twice}>")
        for k in (0, 1):
            control = _control(e, bits, g + k, "<32 x i8>", 32, bool(k))
            moved = e(f"call <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8> {source}, <32 x i8> {control})")
            yield e(f"sitofp <8 x i32> {e(f'bitcast <32 x i8> {moved} to <8 x i32>')} to <8 x float>")
