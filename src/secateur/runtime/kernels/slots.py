"""Kernels for bf16 matrices that keep little, on AVX2: they bring x to the values, not the values to their columns.

Four rows are woven. They are cut into steps of up to 15 columns, of which no row keeps more than 8. A step is

    slots   16 bytes, 4 for each row, 4 bits for each of 8 values: its column, counted from 1 within the step;
            0 where there's no value
    head    4 bytes. Three say how many bytes the values of row 0, 1 and 2 take; in the fourth, the lower half is the
            number of values of row 3, the upper half the columns of the step
    values  of row 0, then of rows 1 to 3

and slots, heads and values are a stream each. A byte shuffle looks 32 entries of x up at once, the 8 of all 4 rows;
where nothing is kept it gives 0, so that the value read there, the next one, must be finite. It's two shuffles, as x
comes in two planes: the lower bytes, then the upper ones, each (batch, columns).
"""

from __future__ import annotations

from secateur.runtime.kernels.ir import Body, Spec
from secateur.runtime.kernels.run import DECLARATIONS, functions, take_rows

LAYER = ("values", "slots", "heads", "offsets", "bias", "bias_step", "rows", "columns")
ROWS, SLOTS, WIDEST = 4, 8, 15
MAX_BATCH = 2  # rows of x at once: with the sums of more, registers run out
STEP_BYTES = ROWS * SLOTS // 2
FAR, NEAR, SLOTS_AHEAD = 8192, 2048, 4096  # how far ahead of use values, and slots, are fetched
_EVEN, _ODD = "splat (i32 16)", "splat (i32 -65536)"
_MORE = """
declare <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8>, <32 x i8>)
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)
declare float @llvm.vector.reduce.fadd.v4f32(float, <4 x float>)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""


def module(spec: Spec, openmp: bool) -> str:
    """`work`, `run` and `run_bf16` as in bitmap.py; `run` alone only unpacks. Columns are a multiple of 64."""
    body = Body()
    take_rows(body, LAYER)
    _group_start(body)
    _unpack(body) if spec.batch == 0 else _product(body, spec.batch)
    body.name("%r_next", f"add i64 %r, {ROWS}")
    body.do(f"br i1 {body('icmp ult i64 %r_next, %last')}, label %row, label %take")
    body.label("done")
    body.do("ret void")
    return DECLARATIONS + _MORE + functions(body, openmp, _planes() if spec.batch else None)


def _planes() -> str:
    """32 bf16 entries at %from as bytes of both planes; the second lies where half of %x32 ends."""
    e = Body()
    both = e.load("<32 x i16>", "%from")
    low, high = e(f"trunc <32 x i16> {both} to <32 x i8>"), e(f"lshr <32 x i16> {both}, splat (i16 8)")
    into = e.at("%x32", "%i")
    e.do(f"store <32 x i8> {low}, ptr {into}, align 1")
    upper = e.at(into, e("shl i64 %inputs, 1"))
    e.do(f"store <32 x i8> {e(f'trunc <32 x i16> {high} to <32 x i8>')}, ptr {upper}, align 1")
    return "\n".join(e.lines)


def _group_start(e: Body) -> None:
    """Where the values of row %r and of the three after it begin, and their steps: %v0, [%s0, %s1)."""
    e.label("row")
    e.name("%r", "phi i64 [%first, %taken], [%r_next, %row_end]")
    place = e.at("%offsets", e("shl i64 %r, 2"))  # 16 bytes for 4 rows
    e.name("%v0", f"getelementptr i16, ptr %values, i64 {e.load('i64', place)}")
    e.name("%s0", f"load i64, ptr {e.at(place, 8)}")
    e.name("%s1", f"load i64, ptr {e.at(place, 24)}")
    e.do("br label %step")


def _step_start(e: Body, before: str) -> list[str]:
    """The address of each row's first value in step %s; what it loads from is fetched ahead.

    Advances %s, %v and the column %c to %s_next, %v_next and %c_next.
    """
    e.name("%s", f"phi i64 [%s0, %row], [%s_next, %{before}]")
    e.name("%v", f"phi ptr [%v0, %row], [%v_next, %{before}]")
    e.name("%c", f"phi i64 [0, %row], [%c_next, %{before}]")
    e.name("%slot", f"getelementptr i8, ptr %slots, i64 {e(f'mul i64 %s, {STEP_BYTES}')}")
    head = e.load("i32", e.at("%heads", "%s", "i32"))
    rows = ["%v"]
    for q in range(ROWS - 1):
        count = e(f"and i32 {e(f'lshr i32 {head}, {8 * q}')}, 255")
        rows.append(e.at(rows[-1], e(f"zext i32 {count} to i64")))
    count = e(f"and i32 {e(f'lshr i32 {head}, 24')}, 15")
    e.name("%v_next", f"getelementptr i16, ptr {rows[-1]}, i64 {e(f'zext i32 {count} to i64')}")
    e.name("%width", f"zext i32 {e(f'lshr i32 {head}, 28')} to i64")
    e.name("%c_next", "add i64 %c, %width")
    e.name("%s_next", "add i64 %s, 1")
    for level, address, ahead in ((2, "%v", FAR), (3, "%v", NEAR), (3, "%slot", SLOTS_AHEAD)):
        e.do(f"call void @llvm.prefetch.p0(ptr {e.at(address, ahead)}, i32 0, i32 {level}, i32 1)")
    return rows


# -------------------------------------------------------------------------------------- products


def _product(e: Body, batch: int) -> None:
    """Sums for each row of x: of rows 0 and 2 of the matrix together, and of rows 1 and 3."""
    chains = 2 if batch == 1 else 1  # even and odd slots apart: one row of x alone would wait for its sums
    sums = [(b, pair, a) for b in range(batch) for pair in (0, 1) for a in range(chains)]
    e.label("step")
    for b, pair, a in sums:
        e.name(f"%sum_{b}_{pair}_{a}", f"phi <8 x float> [zeroinitializer, %row], [%next_{b}_{pair}_{a}, %step]")
    rows = _step_start(e, "step")
    order = _columns(e)
    weights = [_both(e, _two_rows(e, rows[pair], rows[pair + 2])) for pair in (0, 1)]
    total = {(b, pair, a): f"%sum_{b}_{pair}_{a}" for b, pair, a in sums}
    for b in range(batch):
        for pair, found in enumerate(_looked_up(e, batch, b, order)):
            for odd, x in enumerate(_both(e, found)):
                key = (b, pair, odd % chains)
                operands = f"<8 x float> {weights[pair][odd]}, <8 x float> {x}, <8 x float> {total[key]}"
                total[key] = e(f"call <8 x float> @llvm.fma.v8f32({operands})")
    for b, pair, a in sums:
        e.name(f"%next_{b}_{pair}_{a}", f"bitcast <8 x float> {total[b, pair, a]} to <8 x float>")
    e.do(f"br i1 {e('icmp ult i64 %s_next, %s1')}, label %step, label %row_end")
    e.label("row_end")
    for q in range(ROWS):
        row = e(f"add i64 %r, {q}")
        bias = e.load("float", e.at("%bias", e(f"mul i64 {row}, %bias_step")))
        half = ", ".join(f"i32 {4 * (q // 2) + j}" for j in range(4))
        for b in range(batch):
            both = f"%next_{b}_{q % 2}_0"
            if chains > 1:
                both = e(f"fadd <8 x float> {both}, %next_{b}_{q % 2}_1")
            own = e(f"shufflevector <8 x float> {both}, <8 x float> poison, <4 x i32> <{half}>")
            product = e(f"call reassoc float @llvm.vector.reduce.fadd.v4f32(float {bias}, <4 x float> {own})")
            place = e.at("%y", e(f"add i64 {row}, {e(f'mul i64 %rows, {b}')}"), "float")
            e.do(f"store float {product}, ptr {place}")


def _columns(e: Body) -> str:
    """The slots, a byte each, counted from 0; where there's no value, -1, which a shuffle takes for nothing."""
    wide = e(f"zext <16 x i8> {e.load('<16 x i8>', '%slot')} to <16 x i16>")
    doubled = e(f"or <16 x i16> {wide}, {e(f'shl <16 x i16> {wide}, splat (i16 4)')}")
    counted = e(f"and <32 x i8> {e(f'bitcast <16 x i16> {doubled} to <32 x i8>')}, splat (i8 15)")
    return e(f"add <32 x i8> {counted}, splat (i8 -1)")


def _looked_up(e: Body, batch: int, b: int, order: str) -> list[str]:
    """Entries of row b of x for all slots, as bf16: of the matrix' rows 0 and 2, and of its rows 1 and 3."""
    planes = []
    column = e(f"add i64 %c, {e(f'mul i64 %columns, {b}')}") if b else "%c"
    twice = ", ".join(f"i32 {j % 16}" for j in range(32))
    for plane in (0, 1):
        place = e.at("%x", column)
        if plane:
            place = e.at(place, e(f"mul i64 %columns, {2 * batch}"))
        few = e.load("<16 x i8>", place)
        table = e(f"shufflevector <16 x i8> {few}, <16 x i8> poison, <32 x i32> <{twice}>")
        planes.append(e(f"call <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8> {table}, <32 x i8> {order})"))
    found = []
    for half in (0, 8):
        places = [16 * lane + half + j + side for lane in (0, 1) for j in range(8) for side in (0, 32)]
        mixed = ", ".join(f"i32 {place}" for place in places)
        found.append(e(f"shufflevector <32 x i8> {planes[0]}, <32 x i8> {planes[1]}, <32 x i32> <{mixed}>"))
    return found


def _two_rows(e: Body, first: str, second: str) -> str:
    """8 values at each of two places."""
    order = ", ".join(f"i32 {j}" for j in range(32))
    halves = [e.load("<16 x i8>", place) for place in (first, second)]
    return e(f"shufflevector <16 x i8> {halves[0]}, <16 x i8> {halves[1]}, <32 x i32> <{order}>")


def _both(e: Body, sixteen: str) -> list[str]:
    """The even and the odd ones of 16 bf16 numbers as <8 x float>."""
    pairs = e(f"bitcast <32 x i8> {sixteen} to <8 x i32>")
    even, odd = e(f"shl <8 x i32> {pairs}, {_EVEN}"), e(f"and <8 x i32> {pairs}, {_ODD}")
    return [e(f"bitcast <8 x i32> {each} to <8 x float>") for each in (even, odd)]


# ------------------------------------------------------------------------------------- unpacking


def _unpack(e: Body) -> None:
    """Rows [%first, %last) as they were, into y, which has room for whole groups of four."""
    e.label("step")
    rows = _step_start(e, "step_end")
    inside = e(f"icmp ule i64 {e(f'add i64 %c, {2 * SLOTS}')}, %columns")
    spaces = [_spread(e, q, v) for q, v in enumerate(rows)]
    places = []
    for q in range(ROWS):
        line = e(f"mul i64 %columns, {e(f'add i64 %r, {q}')}")
        places.append(e.at("%y", e(f"add i64 {line}, %c"), "i16"))
    e.do(f"br i1 {inside}, label %whole, label %part")
    e.label("whole")  # what is too much is written again, by the next step
    for space, place in zip(spaces, places, strict=True):
        e.do(f"store <16 x i16> {e.load('<16 x i16>', space)}, ptr {place}, align 1")
    e.do("br label %step_end")
    e.label("part")
    for space, place in zip(spaces, places, strict=True):
        e.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {place}, ptr {space}, i64 {e('shl i64 %width, 1')}, i1 false)")
    e.do("br label %step_end")
    e.label("step_end")
    e.do(f"br i1 {e('icmp ult i64 %s_next, %s1')}, label %step, label %row_end")
    e.label("row_end")


def _spread(e: Body, q: int, v: str) -> str:
    """The address of row q's 15 columns of a step, and one more; before it, room for what belongs nowhere."""
    e.lines.insert(1, f"  %space_{q} = alloca [20 x i16], align 64")
    columns = e.at(f"%space_{q}", 1, "i16")
    e.do(f"store <16 x i16> zeroinitializer, ptr {columns}, align 2")
    slots = e.load("i32", e.at("%slot", 4 * q))
    for k in range(SLOTS):
        slot = e(f"and i32 {e(f'lshr i32 {slots}, {4 * k}')}, 15")
        place = e.at(f"%space_{q}", e(f"zext i32 {slot} to i64"), "i16")
        e.do(f"store i16 {e.load('i16', e.at(v, k, 'i16'))}, ptr {place}")
    return columns
