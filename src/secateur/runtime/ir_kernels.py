"""The kernels as whole modules of LLVM IR: what surrounds the expansion of a word."""

from __future__ import annotations

from secateur.runtime import ir_expand
from secateur.runtime.ir import LAYER, WIDTH, WORD, Body, Spec, next_word, row_start

_DECLARATIONS = """
declare i64 @llvm.ctpop.i64(i64)
declare i64 @llvm.cttz.i64(i64, i1)
declare i64 @llvm.umin.i64(i64, i64)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
"""
_RUN = """
define void @run(ptr %layer, ptr %x, ptr %y, i32 %threads, i64 %chunk) {
  %context = alloca [5 x i64], align 64
  %field1 = getelementptr i64, ptr %context, i64 1
  %field2 = getelementptr i64, ptr %context, i64 2
  %field3 = getelementptr i64, ptr %context, i64 3
  %field4 = getelementptr i64, ptr %context, i64 4
  store ptr %layer, ptr %context
  store ptr %x, ptr %field1
  store ptr %y, ptr %field2
  store i64 0, ptr %field3
  store i64 %chunk, ptr %field4
  %alone = icmp slt i32 %threads, 2
  br i1 %alone, label %one, label %many
one:
  call void @work(ptr %context)
  ret void
many:
  PARALLEL
  ret void
}
"""
# The same for bf16 activations, so that a product is one call: x (%inputs entries) is widened into %x32, y (%outputs
# entries) is rounded from %y32 to nearest even, as torch does. Both counts are multiples of 32 and of 8.
_RUN_BF16 = """
define void @run_bf16(ptr %layer, ptr %x, ptr %y, i32 %threads, i64 %chunk,
                      ptr %x32, ptr %y32, i64 %inputs, i64 %outputs) {
entry:
  br label %widen
widen:
  %i = phi i64 [0, %entry], [%i_next, %widen]
  %from = getelementptr i16, ptr %x, i64 %i
  %into = getelementptr float, ptr %x32, i64 %i
WIDEN
  %i_next = add i64 %i, 32
  %more = icmp ult i64 %i_next, %inputs
  br i1 %more, label %widen, label %multiply
multiply:
  call void @run(ptr %layer, ptr %x32, ptr %y32, i32 %threads, i64 %chunk)
  br label %round
round:
  %j = phi i64 [0, %multiply], [%j_next, %round]
  %sum = getelementptr float, ptr %y32, i64 %j
  %to = getelementptr i16, ptr %y, i64 %j
  %value = load <8 x float>, ptr %sum, align 4
  %bits = bitcast <8 x float> %value to <8 x i32>
  %upper = lshr <8 x i32> %bits, splat (i32 16)
  %odd = and <8 x i32> %upper, splat (i32 1)
  %half = add <8 x i32> %odd, splat (i32 32767)
  %carried = add <8 x i32> %bits, %half
  %rounded = lshr <8 x i32> %carried, splat (i32 16)
  %nan = fcmp uno <8 x float> %value, zeroinitializer
  %chosen = select <8 x i1> %nan, <8 x i32> splat (i32 32704), <8 x i32> %rounded
  %short = trunc <8 x i32> %chosen to <8 x i16>
  store <8 x i16> %short, ptr %to, align 2
  %j_next = add i64 %j, 8
  %left = icmp ult i64 %j_next, %outputs
  br i1 %left, label %round, label %done
done:
  ret void
}
"""
_GOMP = "call void @GOMP_parallel(ptr @work, ptr %context, i32 %threads, i32 0)"


def module(spec: Spec, openmp: bool) -> str:
    """The whole module: `work(context)`, `run(layer, x, y, threads, rows at a time)`, and for products `run_bf16`.

    Args:
        openmp: `GOMP_parallel` can be called; otherwise `run` uses one thread.
    """
    body = Body()
    _open(body, spec)
    _unpack(body, spec) if spec.batch == 0 else _product(body, spec)
    body.do("br label %take")
    body.label("done")
    body.do("ret void")
    work = "\n".join(["define void @work(ptr %context) {", *body.lines, "}"])
    run = _RUN.replace("PARALLEL", _GOMP if openmp else "call void @work(ptr %context)")
    if spec.batch:
        run += _RUN_BF16.replace("WIDEN", _widening(spec.split))
    outside = "declare void @GOMP_parallel(ptr, ptr, i32, i32)\n" if openmp else ""
    return _DECLARATIONS + outside + ir_expand.declarations(spec) + ir_expand.table(spec) + work + run


def _widening(split: int) -> str:
    """32 bf16 entries at %from as float32 at %into: in order, or of each `split` the even before the odd ones."""
    e, n = Body(), split // 2 or 8
    for first in range(0, 32, split or n):
        source, low = e.at("%from", first, "i16"), e.at("%into", first, "float")
        if split:
            pairs = e.load(f"<{n} x i32>", source)
            e.do(f"store <{n} x i32> {e(f'shl <{n} x i32> {pairs}, splat (i32 16)')}, ptr {low}, align 4")
            odd = e(f"and <{n} x i32> {pairs}, splat (i32 -65536)")
            e.do(f"store <{n} x i32> {odd}, ptr {e.at(low, n, 'float')}, align 4")
        else:
            wide = e(f"zext <{n} x i16> {e.load(f'<{n} x i16>', source)} to <{n} x i32>")
            e.do(f"store <{n} x i32> {e(f'shl <{n} x i32> {wide}, splat (i32 16)')}, ptr {low}, align 4")
    return "\n".join(e.lines)


def _open(e: Body, spec: Spec) -> None:
    """Loads the structures, and takes rows [%first, %last) as long as there are any."""
    e.label("entry")
    e.name("%layer", "load ptr, ptr %context")
    for index, name in ((1, "x"), (2, "y"), (4, "chunk")):
        kind = "i64" if name == "chunk" else "ptr"
        e.name(f"%{name}", f"load {kind}, ptr {e.at('%context', index, 'i64')}")
    e.name("%counter", "getelementptr i64, ptr %context, i64 3")
    for index, name in enumerate(LAYER):
        kind = "ptr" if index < 5 else "i64"
        e.name(f"%{name}", f"load {kind}, ptr {e.at('%layer', index, 'i64')}")
    e.name("%columns", f"mul i64 %words, {WORD}")
    e.do("br label %take")
    e.label("take")
    e.name("%first", "atomicrmw add ptr %counter, i64 %chunk monotonic")
    e.name("%left", "icmp ult i64 %first, %rows")
    e.do("br i1 %left, label %taken, label %done")
    e.label("taken")
    e.name("%last", f"call i64 @llvm.umin.i64(i64 {e('add i64 %first, %chunk')}, i64 %rows)")
    e.name("%final", "sub i64 %last, 1")
    e.do("br label %row")


def _product(e: Body, spec: Spec) -> None:
    vector = f"<{spec.lanes} x float>" if spec.lanes > 1 else "float"
    zero = "zeroinitializer" if spec.lanes > 1 else "0.0"
    sums = [(q, b, a) for q in range(spec.rows) for b in range(spec.batch) for a in range(spec.chains)]
    e.label("row")
    e.name("%r", "phi i64 [%first, %taken], [%r_next, %row_end]")
    for q in range(spec.rows):
        # The last row stands in for one that isn't there.
        e.name(f"%row_{q}", f"call i64 @llvm.umin.i64(i64 {e(f'add i64 %r, {q}')}, i64 %final)")
    row_start(e, spec)
    e.do("br label %word")
    e.label("word")
    e.name("%i", "phi i64 [0, %row], [%i_next, %word_end]")
    e.name("%v", "phi ptr [%v0, %row], [%v_next, %word_end]")
    for q, b, a in sums:
        e.name(f"%s_{q}_{b}_{a}", f"phi {vector} [{zero}, %row], [%s_next_{q}_{b}_{a}, %word_end]")
    ir_expand.multiply(e, spec)
    e.name("%i_next", "add i64 %i, 1")
    e.do(f"br i1 {e('icmp ult i64 %i_next, %words')}, label %word, label %row_end")
    e.label("row_end")
    for q in reversed(range(spec.rows)):  # the first of a pair last: its sum stays where there is no second one
        bias = e.load("float", e.at("%bias", e(f"mul i64 %row_{q}, %bias_step")))
        for b in range(spec.batch):
            place = e(f"add i64 %row_{q}, {e(f'mul i64 %rows, {b}')}")
            e.do(f"store float {_total(e, spec, q, b, vector, bias)}, ptr {e.at('%y', place, 'float')}")
    e.name("%r_next", f"add i64 %r, {spec.rows}")
    e.do(f"br i1 {e('icmp ult i64 %r_next, %last')}, label %row, label %row_done")
    e.label("row_done")


def _total(e: Body, spec: Spec, q: int, b: int, vector: str, bias: str) -> str:
    total = f"%s_next_{q}_{b}_0"
    for a in range(1, spec.chains):
        total = e(f"fadd {vector} {total}, %s_next_{q}_{b}_{a}")
    if spec.lanes == 1:
        return e(f"fadd float {total}, {bias}")
    reduce = f"@llvm.vector.reduce.fadd.v{spec.lanes}f32"
    return e(f"call reassoc float {reduce}(float {bias}, {vector} {total})")


# ------------------------------------------------------------------------------------- unpacking


def _unpack(e: Body, spec: Spec) -> None:
    """Rows [%first, %last) as they were, into y, which has room for whole pairs."""
    width = WIDTH[spec.values]
    e.label("row")
    e.name("%r", "phi i64 [%first, %taken], [%r_next, %row_end]")
    row_start(e, spec)
    e.name("%out", f"getelementptr i{8 * width}, ptr %y, i64 {e('mul i64 %r, %columns')}")
    e.do("br label %word")
    e.label("word")
    e.name("%i", "phi i64 [0, %row], [%i_next, %word_end]")
    e.name("%v", "phi ptr [%v0, %row], [%v_next, %word_end]")
    place = e(f"getelementptr i{8 * width}, ptr %out, i64 {e(f'mul i64 %i, {WORD}')}")
    words = next_word(e, spec)
    if spec.variant == "portable":
        _scatter(e, spec, *words[0], place)
    else:
        for bits, v in words:
            for first, kind, found in ir_expand.stored(e, spec, bits, v):
                e.do(f"store {kind} {found}, ptr {e.at(place, width * first)}, align 1")
            place = e.at(place, "%columns", f"i{8 * width}")
        e.do("br label %word_end")
        e.label("word_end")
    e.name("%i_next", "add i64 %i, 1")
    e.do(f"br i1 {e('icmp ult i64 %i_next, %words')}, label %word, label %row_end")
    e.label("row_end")
    e.name("%r_next", f"add i64 %r, {spec.rows}")
    e.do(f"br i1 {e('icmp ult i64 %r_next, %last')}, label %row, label %row_done")
    e.label("row_done")


def _scatter(e: Body, spec: Spec, word: str, v: str, place: str) -> None:
    kind = f"i{8 * WIDTH[spec.values]}"
    e.do(f"call void @llvm.memset.p0.i64(ptr {place}, i8 0, i64 {WORD * WIDTH[spec.values]}, i1 false)")
    e.do("br label %bit")
    e.label("bit")
    e.name("%left_bits", f"phi i64 [{word}, %word], [%bits_less, %some]")
    e.name("%v_here", f"phi ptr [{v}, %word], [%v_on, %some]")
    e.do(f"br i1 {e('icmp eq i64 %left_bits, 0')}, label %word_end, label %some")
    e.label("some")
    column = e("call i64 @llvm.cttz.i64(i64 %left_bits, i1 true)")
    e.name("%bits_less", f"and i64 %left_bits, {e('sub i64 %left_bits, 1')}")
    e.name("%v_on", f"getelementptr {kind}, ptr %v_here, i64 1")
    e.do(f"store {kind} {e.load(kind, '%v_here')}, ptr {e.at(place, column, kind)}, align 1")
    e.do("br label %bit")
    e.label("word_end")
