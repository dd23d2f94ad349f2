"""The kernels as whole modules of LLVM IR: what surrounds the expansion of a word."""

from __future__ import annotations

from secateur.runtime.kernels import bytes as in_bytes
from secateur.runtime.kernels import expand
from secateur.runtime.kernels.ir import LAYER, WIDTH, WORD, Body, Spec, next_word, row_start
from secateur.runtime.kernels.run import DECLARATIONS, functions, take_rows

_MORE = """
declare i64 @llvm.cttz.i64(i64, i1)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
"""


def module(spec: Spec, openmp: bool) -> str:
    """The whole module: `work(context)`, `run(layer, x, y, threads, rows at a time)`, and for products `run_bf16`.

    Args:
        openmp: `GOMP_parallel` can be called; otherwise `run` uses one thread.
    """
    body = Body()
    take_rows(body, LAYER)
    _unpack(body, spec) if spec.batch == 0 else _product(body, spec)
    body.do("br label %take")
    body.label("done")
    body.do("ret void")
    bring = in_bytes.bring() if spec.variant == in_bytes.NAME else widening(spec.split)
    around = functions(body, openmp, bring if spec.batch else None)
    more = in_bytes.DECLARATIONS if spec.variant == in_bytes.NAME else ""
    return DECLARATIONS + _MORE + more + expand.declarations(spec) + expand.table(spec) + around


def widening(split: int) -> str:
    """32 bf16 entries at %from as float32 in %x32: in order, or of each `split` the even before the odd ones."""
    e, n = Body(), split // 2 or 8
    into = e.at("%x32", "%i", "float")
    for first in range(0, 32, split or n):
        source, low = e.at("%from", first, "i16"), e.at(into, first, "float")
        if split:
            pairs = e.load(f"<{n} x i32>", source)
            e.do(f"store <{n} x i32> {e(f'shl <{n} x i32> {pairs}, splat (i32 16)')}, ptr {low}, align 4")
            odd = e(f"and <{n} x i32> {pairs}, splat (i32 -65536)")
            e.do(f"store <{n} x i32> {odd}, ptr {e.at(low, n, 'float')}, align 4")
        else:
            wide = e(f"zext <{n} x i16> {e.load(f'<{n} x i16>', source)} to <{n} x i32>")
            e.do(f"store <{n} x i32> {e(f'shl <{n} x i32> {wide}, splat (i32 16)')}, ptr {low}, align 4")
    return "\n".join(e.lines)


def _product(e: Body, spec: Spec) -> None:
    vector = f"<{spec.lanes} x float>" if spec.lanes > 1 else "float"
    zero = "zeroinitializer" if spec.lanes > 1 else "0.0"
    sums = [(q, b, a) for q in range(spec.rows) for b in range(spec.batch) for a in range(spec.chains)]
    e.label("row")
    e.name("%r", "phi i64 [%first, %taken], [%r_next, %row_end]")
    e.name("%final", "sub i64 %last, 1")
    for q in range(spec.rows):
        # The last row stands in for one that isn't there.
        e.name(f"%row_{q}", f"call i64 @llvm.umin.i64(i64 {e(f'add i64 %r, {q}')}, i64 %final)")
    e.name("%columns", f"mul i64 %words, {WORD}")
    row_start(e, spec)
    e.do("br label %word")
    e.label("word")
    e.name("%i", "phi i64 [0, %row], [%i_next, %word_end]")
    e.name("%v", "phi ptr [%v0, %row], [%v_next, %word_end]")
    for q, b, a in sums:
        e.name(f"%s_{q}_{b}_{a}", f"phi {vector} [{zero}, %row], [%s_next_{q}_{b}_{a}, %word_end]")
    if spec.values == "int8":
        e.name("%group", "phi i64 [0, %row], [%group_next, %word_end]")
        e.name("%until", "phi i64 [%group_words, %row], [%until_next, %word_end]")
    (in_bytes if spec.variant == in_bytes.NAME else expand).multiply(e, spec)
    e.name("%i_next", "add i64 %i, 1")
    if spec.values == "int8":  # a division in every word would take longer than its products
        over = e("icmp eq i64 %i_next, %until")
        e.name("%group_next", f"add i64 %group, {e(f'zext i1 {over} to i64')}")
        e.name("%until_next", f"select i1 {over}, i64 {e('add i64 %until, %group_words')}, i64 %until")
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
    e.name("%columns", f"mul i64 %words, {WORD}")
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
            for first, kind, found in expand.stored(e, spec, bits, v):
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
