"""What surrounds the kernels' own loops: threads that share the rows, and activations in bf16."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.runtime.kernels.ir import Body

ADDRESSES = 5  # the first fields of a layer, where nothing else is said
DECLARATIONS = """
declare i64 @llvm.ctpop.i64(i64)
declare i64 @llvm.umin.i64(i64, i64)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
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
# The same for bf16 activations, so that a product is one call: x (%inputs entries) is brought into %x32 as `work`
# wants it, y (%outputs entries) is rounded from %y32 to nearest even, as torch does. The counts are multiples of 32
# and of 8.
_RUN_BF16 = """
define void @run_bf16(ptr %layer, ptr %x, ptr %y, i32 %threads, i64 %chunk,
                      ptr %x32, ptr %y32, i64 %inputs, i64 %outputs) {
entry:
  br label %bring
bring:
  %i = phi i64 [0, %entry], [%i_next, %bring]
  %from = getelementptr i16, ptr %x, i64 %i
BRING
  %i_next = add i64 %i, 32
  %more = icmp ult i64 %i_next, %inputs
  br i1 %more, label %bring, label %multiply
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


def functions(body: Body, openmp: bool, bring: str | None) -> str:
    """`work` with this body, `run`, and, where it's said how 32 entries of x are brought, `run_bf16`."""
    work = "\n".join(["define void @work(ptr %context) {", *body.lines, "}"])
    run = _RUN.replace("PARALLEL", _GOMP if openmp else "call void @work(ptr %context)")
    if bring is not None:
        run += _RUN_BF16.replace("BRING", bring)
    outside = "declare void @GOMP_parallel(ptr, ptr, i32, i32)\n" if openmp else ""
    return outside + work + run


def take_rows(e: Body, layer: Sequence[str], addresses: int = ADDRESSES) -> None:
    """Loads the structures, and takes rows [%first, %last) as long as there are any, for the block `row`."""
    e.label("entry")
    e.name("%layer", "load ptr, ptr %context")
    for index, name in ((1, "x"), (2, "y"), (4, "chunk")):
        kind = "i64" if name == "chunk" else "ptr"
        e.name(f"%{name}", f"load {kind}, ptr {e.at('%context', index, 'i64')}")
    e.name("%counter", "getelementptr i64, ptr %context, i64 3")
    for index, name in enumerate(layer):
        kind = "ptr" if index < addresses else "i64"
        e.name(f"%{name}", f"load {kind}, ptr {e.at('%layer', index, 'i64')}")
    e.do("br label %take")
    e.label("take")
    e.name("%first", "atomicrmw add ptr %counter, i64 %chunk monotonic")
    e.name("%left", "icmp ult i64 %first, %rows")
    e.do("br i1 %left, label %taken, label %done")
    e.label("taken")
    e.name("%last", f"call i64 @llvm.umin.i64(i64 {e('add i64 %first, %chunk')}, i64 %rows)")
    e.do("br label %row")
