"""LLVM IR of the kernels, as text: products of a packed matrix with a few rows, and unpacking.

One generator for all number formats and processors. A kernel goes through a row of the matrix in words of 64
columns; a variant says how the kept values of a word become vectors of float32 in their columns:

    avx2      8 columns at a time: their bits select a byte shuffle from a table of 256, which spreads up to 8
              values and, for bf16, is the conversion too (the two bytes land in the upper half of a float32)
    avx512    16 or 32 columns at a time by the expanding loads of AVX-512 VBMI2
    portable  one value after the other, anywhere that LLVM compiles for

A `work` function takes rows from a shared counter until there are none left, so that threads which others
slow down get fewer. `run` starts it on several threads through the OpenMP library that torch itself uses.

The two structures, all fields 64 bits wide:

    layer     values, bitmap, offsets, bias, scales (addresses), bias step in bytes, rows, words a row, groups a
              row, words a group
    context   layer, x, y (addresses), next row, rows taken at a time
"""

from __future__ import annotations

from dataclasses import dataclass, field

WORD = 64
MAX_BATCH = 8
LAYER = ("values", "bitmap", "offsets", "bias", "scales", "bias_step", "rows", "words", "groups", "group_words")
WIDTH = {"bf16": 2, "fp16": 2, "fp32": 4, "int8": 1}
AHEAD = (8192, 8256)  # bytes from here to where values are fetched into the cache; without, it takes twice as long


@dataclass(frozen=True)
class Spec:
    """Which kernel. `batch` rows of x at once, or 0: unpack into rows of `words * 64` entries."""

    variant: str
    values: str
    batch: int

    @property
    def lanes(self) -> int:
        return {"avx2": 8, "avx512": 16, "portable": 1}[self.variant]

    @property
    def rows(self) -> int:
        """Rows of the matrix that share what is loaded of x."""
        return 2 if self.batch <= 4 and self.variant != "portable" else 1

    @property
    def chains(self) -> int:
        """Sums of one product that don't wait for each other."""
        return max(1, 4 // (self.rows * self.batch)) if self.lanes > 1 else 1

    @property
    def split(self) -> bool:
        """Whether x comes with the even columns of each 32 before the odd ones."""
        return (self.variant, self.values) == ("avx512", "bf16") and self.batch > 0


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


def row_start(e: Body, number: str, q: int) -> None:
    """Where values and bits of a row begin: %v0_q and %bits_q."""
    offset = e.load("i64", e.at("%offsets", number, "i64"))
    bytes_in = e(f"mul i64 {offset}, %width")
    e.name(f"%v0_{q}", f"getelementptr i8, ptr %values, i64 {bytes_in}")
    place = e(f"mul i64 {number}, %words")
    e.name(f"%bits_{q}", f"getelementptr i64, ptr %bitmap, i64 {place}")


def x_address(e: Body, spec: Spec, b: int, column: str) -> str:
    """Of row b of x at a column (an i64 value)."""
    if b:
        column = e(f"add i64 {column}, {e(f'mul i64 %columns, {b}')}")
    return e.at("%x", column, "float")
