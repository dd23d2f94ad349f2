"""LLVM IR of the kernels, as text: products of a packed matrix with a few rows, and unpacking.

One generator for all number formats and processors. (For bf16 of which little is kept there is another one,
slots.py, of which nothing of this is true.) A kernel goes through two rows of the matrix at once, word by
word of 64 columns. In memory both rows are woven: a word's values of the first row, then those of the second, then
the next word's, and likewise their bits. So there is one stream to read and to fetch ahead, not two. A variant says
how the kept values of a word become vectors of float32 in their columns:

    avx2      by byte shuffles that the bits select from tables: shuffle.py
    avx512    16 or 32 columns at a time by the expanding loads of AVX-512 VBMI2
    vnni      64 columns at a time likewise, and multiplied as bytes: bytes.py
    portable  one value after the other, anywhere that LLVM compiles for

A `work` function takes rows from a shared counter until there are none left, so that threads which others
slow down get fewer. `run` starts it on several threads through the OpenMP library that torch itself uses.

The two structures, all fields 64 bits wide:

    layer     values, bitmap, offsets of pairs, bias, scales (addresses), bias step in bytes, rows, words a row,
              groups a row, words a group
    context   layer, x, y (addresses), next row, rows taken at a time
"""

from __future__ import annotations

from dataclasses import dataclass, field

WORD = 64
MAX_BATCH = 4  # rows of x that a kernel multiplies at once: more don't fit into the registers
LAYER = ("values", "bitmap", "offsets", "bias", "scales", "bias_step", "rows", "words", "groups", "group_words")
WIDTH = {"bf16": 2, "fp16": 2, "fp32": 4, "int8": 1}
PAIR = 2  # rows that are woven
# How far ahead values are fetched into the second and from there into the first cache; without, it takes half as
# long again.
FAR, NEAR = 8192, 2048
LINE = 64


@dataclass(frozen=True)
class Spec:
    """Which kernel. `batch` rows of x at once, or 0: unpack into rows of `words * 64` entries.

    What follows from the three is for the kernels of bitmap.py and plain.py; `slots` has none of it.
    """

    variant: str
    values: str
    batch: int

    @property
    def lanes(self) -> int:
        return {"avx2": 8, "avx512": 16, "vnni": 16, "plain": 16, "portable": 1}[self.variant]

    @property
    def rows(self) -> int:
        """Rows of a pair at once, which share what is loaded of x."""
        return 1 if self.variant in ("plain", "portable") else PAIR

    @property
    def chains(self) -> int:
        """Sums of one product that don't wait for each other."""
        alone = self.lanes == 1 or self.variant == "vnni"
        return 1 if alone else max(1, 4 // (self.rows * self.batch))

    @property
    def split(self) -> int:
        """x comes with the even columns of each so many before the odd ones; 0: in order."""
        return 2 * self.lanes if self.values == "bf16" and self.batch and self.lanes > 1 else 0


@dataclass
class Body:
    """The lines of a function, with a fresh name for each value."""

    lines: list[str] = field(default_factory=list)
    used: int = 0

    def __call__(self, text: str) -> str:
        self.used += 1
        name = f"%t{self.used}"
        self.lines.append(f"  {name} = {text}")
        return name

    def name(self, name: str, text: str) -> str:
        self.lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def label(self, text: str) -> None:
        self.lines.append(f"{text}:")

    def at(self, base: str, offset: str | int, width: str = "i8") -> str:
        return self(f"getelementptr {width}, ptr {base}, i64 {offset}")

    def load(self, kind: str, address: str) -> str:
        return self(f"load {kind}, ptr {address}, align 1")


def row_start(e: Body, spec: Spec) -> None:
    """Where the pair of row %r begins: %v0, %bits; for kernels that take one row, whether it's the second: %odd."""
    pair = e(f"udiv i64 %r, {PAIR}")
    offset = e.load("i64", e.at("%offsets", pair, "i64"))
    e.name("%v0", f"getelementptr i8, ptr %values, i64 {e(f'mul i64 {offset}, {WIDTH[spec.values]}')}")
    words = e(f"mul i64 %words, {PAIR}")
    e.name("%bits", f"getelementptr i64, ptr %bitmap, i64 {e(f'mul i64 {pair}, {words}')}")
    if spec.rows == 1:
        e.name("%odd", "trunc i64 %r to i1")


def next_word(e: Body, spec: Spec) -> list[tuple[str, str]]:
    """(bits, address of the first value) of each row's word %i; advances %v to %v_next, and fetches values ahead."""
    kind = f"i{8 * WIDTH[spec.values]}"
    place = e.at("%bits", e(f"mul i64 %i, {PAIR}"), "i64")
    bits = [e.load("i64", place), e.load("i64", e.at(place, 1, "i64"))]
    counts = [e(f"call i64 @llvm.ctpop.i64(i64 {each})") for each in bits]
    second = e.at("%v", counts[0], kind)
    e.name("%v_next", f"getelementptr {kind}, ptr {second}, i64 {counts[1]}")
    lines = max(1, WIDTH[spec.values] // 2)  # that half of a word's values fill
    for v in ("%v", second):
        for level, first, count in ((2, FAR, lines + 1), (3, NEAR, lines)):
            for line in range(count):
                ahead = e.at(v, first + LINE * line)
                e.do(f"call void @llvm.prefetch.p0(ptr {ahead}, i32 0, i32 {level}, i32 1)")
    if spec.rows == PAIR:
        return [(bits[0], "%v"), (bits[1], second)]
    own = e(f"select i1 %odd, i64 {bits[1]}, i64 {bits[0]}")
    return [(own, e(f"select i1 %odd, ptr {second}, ptr %v"))]


def x_address(e: Body, spec: Spec, b: int, column: str) -> str:
    """Of row b of x at a column (an i64 value)."""
    if b:
        column = e(f"add i64 {column}, {e(f'mul i64 %columns, {b}')}")
    return e.at("%x", column, "float")
