"""Cuts the rows of a packed bf16 matrix into the steps that slots.py describes.

`cut(values, bitmap, offsets, woven values, slots, heads, steps, groups, words)`: all but the last two are addresses;
`offsets` has the first value of each row, `steps` takes the number of each group's steps. Rows come in whole groups
of four, in whole words of 64 columns, with 3 bytes to spare after the last.
"""

from __future__ import annotations

from secateur.runtime.kernels.ir import WORD, Body
from secateur.runtime.kernels.slots import ROWS, SLOTS, WIDEST

_DECLARATIONS = """
declare i64 @llvm.ctpop.i64(i64)
declare i64 @llvm.cttz.i64(i64, i1)
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.x86.bmi.pdep.64(i64, i64)
declare i64 @llvm.x86.bmi.pext.64(i64, i64)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""
_ONES = sum(1 << 4 * column for column in range(WIDEST))  # a bit for each column, 4 apart
_NUMBERS = sum(column + 1 << 4 * column for column in range(WIDEST))
_SOURCES = ("%values", "%bitmap", "%offsets", "%woven", "%slots", "%heads", "%steps")
_RUNNING = ("woven", "slots", "heads")  # addresses that go on from step to step, and from group to group


def module() -> str:
    e = Body()
    e.label("entry")
    e.name("%columns", f"mul i64 %words, {WORD}")
    e.do("br label %group")
    e.label("group")
    e.name("%g", "phi i64 [0, %entry], [%g_next, %group_end]")
    for name in _RUNNING:
        e.name(f"%{name}_g", f"phi ptr [%{name}, %entry], [%{name}_next, %group_end]")
    first = e(f"mul i64 %g, {ROWS}")
    bits = []
    for q in range(ROWS):
        row = e(f"add i64 {first}, {q}")
        bits.append(e.at("%bitmap", e(f"mul i64 {row}, {e('shl i64 %words, 3')}")))
        e.name(f"%v_{q}_g", f"getelementptr i16, ptr %values, i64 {e.load('i64', e.at('%offsets', row, 'i64'))}")
    e.do("br label %step")
    e.label("step")
    e.name("%c", "phi i64 [0, %group], [%c_next, %step]")
    e.name("%count", "phi i64 [0, %group], [%count_next, %step]")
    for name in (*_RUNNING, *(f"v_{q}" for q in range(ROWS))):
        e.name(f"%{name}_s", f"phi ptr [%{name}_g, %group], [%{name}_next, %step]")
    masks = [_columns_from_c(e, row) for row in bits]
    width = _width(e, masks)
    counts = [_row(e, q, mask, width) for q, mask in enumerate(masks)]
    _head(e, counts, width)
    e.name("%c_next", f"add i64 %c, {width}")
    e.name("%count_next", "add i64 %count, 1")
    e.do(f"br i1 {e('icmp ult i64 %c_next, %columns')}, label %step, label %group_end")
    e.label("group_end")
    e.do(f"store i64 %count_next, ptr {e.at('%steps', '%g', 'i64')}")
    e.name("%g_next", "add i64 %g, 1")
    e.do(f"br i1 {e('icmp ult i64 %g_next, %groups')}, label %group, label %done")
    e.label("done")
    e.do("ret void")
    arguments = ", ".join([*(f"ptr {name}" for name in _SOURCES), "i64 %groups", "i64 %words"])
    return "\n".join([_DECLARATIONS, f"define void @cut({arguments}) {{", *e.lines, "}"])


def _columns_from_c(e: Body, bits: str) -> str:
    """The bits of 15 columns from %c on; after the last column any."""
    byte = e.at(bits, e("lshr i64 %c, 3"))
    four = e(f"zext i32 {e.load('i32', byte)} to i64")
    shift = e("and i64 %c, 7")
    return e(f"and i64 {e(f'lshr i64 {four}, {shift}')}, {(1 << WIDEST) - 1}")


def _width(e: Body, masks: list[str]) -> str:
    """Columns of the step: up to the first that would be some row's ninth."""
    width = e(f"call i64 @llvm.umin.i64(i64 {WIDEST}, i64 {e('sub i64 %columns, %c')})")
    for mask in masks:
        ninth = e(f"call i64 @llvm.x86.bmi.pdep.64(i64 {1 << SLOTS}, i64 {mask})")
        place = e(f"call i64 @llvm.cttz.i64(i64 {ninth}, i1 false)")
        width = e(f"call i64 @llvm.umin.i64(i64 {width}, i64 {place})")
    return width


def _row(e: Body, q: int, mask: str, width: str) -> str:
    """Stores the slots and the values of a row; twice their number."""
    beyond = e(f"shl i64 -1, {width}")
    kept = e(f"and i64 {mask}, {e(f'xor i64 {beyond}, -1')}")
    spread = e(f"mul i64 {e(f'call i64 @llvm.x86.bmi.pdep.64(i64 {kept}, i64 {_ONES})')}, 15")
    found = e(f"call i64 @llvm.x86.bmi.pext.64(i64 {_NUMBERS}, i64 {spread})")
    e.do(f"store i32 {e(f'trunc i64 {found} to i32')}, ptr {e.at('%slots_s', 4 * q)}, align 1")
    size = e(f"shl i64 {e(f'call i64 @llvm.ctpop.i64(i64 {kept})')}, 1")
    target = "%woven_s" if q == 0 else f"%woven_{q}"
    e.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr %v_{q}_s, i64 {size}, i1 false)")
    e.name("%woven_next" if q == ROWS - 1 else f"%woven_{q + 1}", f"getelementptr i8, ptr {target}, i64 {size}")
    e.name(f"%v_{q}_next", f"getelementptr i8, ptr %v_{q}_s, i64 {size}")
    return size


def _head(e: Body, sizes: list[str], width: str) -> None:
    head = e(f"or i64 {sizes[0]}, {e(f'shl i64 {width}, 28')}")
    for q, shift in ((1, 8), (2, 16), (3, 23)):
        head = e(f"or i64 {head}, {e(f'shl i64 {sizes[q]}, {shift}')}")
    e.do(f"store i32 {e(f'trunc i64 {head} to i32')}, ptr %heads_s, align 1")
    e.name("%slots_next", "getelementptr i8, ptr %slots_s, i64 16")
    e.name("%heads_next", "getelementptr i8, ptr %heads_s, i64 4")
