"""From which entry reaches which column, to units and the layouts of their axes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.model.anatomy import Item, Owned, Segment
from secateur.model.detection.influence import Influence


@dataclass(frozen=True)
class Blocks:
    """Columns of a Linear's input as equal blocks: `width` for each head, `group` heads for each group."""

    width: int
    heads: int
    groups: int
    runs: int = 0  # the groups share nothing: they say how heads lie

    def label(self, columns: Tensor) -> tuple[str, int]:
        """Whose an entry is that reaches these columns, bool (columns,)."""
        count = int(columns.sum())
        if count == 0 or count == len(columns):
            return "fixed", 0
        places = columns.nonzero().flatten()
        first, last = int(places[0]), int(places[-1])
        if first // self.width == last // self.width:
            return "head", first // self.width
        wide = self.width * (self.heads // self.groups)
        if self.groups < self.heads and first // wide == last // wide:
            return "group", first // wide
        return "across", 0


def blocks_of(found: Influence) -> Blocks | None:
    """The units that a Linear reads: the finest blocks of columns that nothing crosses; and, inside of them, those
    that only some parameters cross (query heads inside of KV groups). None if all columns hang together."""
    parent = list(range(found.columns))

    def root(column: int) -> int:
        while parent[column] != column:
            parent[column] = parent[parent[column]]
            column = parent[column]
        return column

    for matrix in found.reach.values():
        for row in _partial(matrix):
            own = row.nonzero().flatten().tolist()
            for column in own[1:]:
                parent[root(column)] = root(own[0])
    outer = _equal_blocks([root(column) for column in range(found.columns)])
    if outer is None:
        return None
    inner = {width for matrix in found.reach.values() for width in _own_widths(matrix, outer)}
    width = max(inner, default=outer)
    if width == found.columns:
        return None
    return Blocks(width, found.columns // width, found.columns // outer)


def _partial(matrix: Tensor) -> Tensor:
    """Rows that reach some columns, not all."""
    counts = matrix.sum(1)
    rows = matrix[(counts > 1) & (counts < matrix.shape[1])]
    return torch.unique(rows, dim=0) if len(rows) else rows


def _equal_blocks(labels: list[int]) -> int | None:
    """The width of consecutive blocks of equal labels, if all are equally wide and no label comes twice."""
    starts = [i for i, label in enumerate(labels) if i == 0 or label != labels[i - 1]]
    widths = {b - a for a, b in zip(starts, [*starts[1:], len(labels)], strict=True)}
    return widths.pop() if len(widths) == 1 and len({labels[i] for i in starts}) == len(starts) else None


def _own_widths(matrix: Tensor, outer: int) -> list[int]:
    """Widths of blocks inside the outer ones that some of one parameter's entries reach, all of them together each
    column once."""
    counts, columns = matrix.sum(1), matrix.shape[1]
    out = []
    for width in sorted(set(counts.tolist())):
        if not 1 < width < outer or outer % width:
            continue
        rows = torch.unique(matrix[counts == width], dim=0)
        if len(rows) * width == columns and bool((rows.sum(0) == 1).all()):
            labels = rows.int().argmax(0).tolist()
            out += [width] if _equal_blocks(labels) == width else []
    return out


def owned_by(found: Influence, blocks: Blocks) -> list[Owned] | str:
    """Every axis of which units own entries; or what doesn't fit, in words."""
    out = []
    for (name, axis), matrix in sorted(found.reach.items()):
        labels = [blocks.label(row) for row in matrix]
        if all(level in ("fixed", "across") for level, _ in labels):
            if any(level == "across" for level, _ in labels):
                return f"{name} reaches units in an order of its own"
            continue
        segments = segments_of(labels, blocks)
        if segments is None:
            return f"the layout of {name} is unknown"
        out.append(Owned(name, axis, segments))
    return out


def segments_of(labels: list[tuple[str, int]], blocks: Blocks) -> tuple[Segment, ...] | None:
    """An axis whose entries are labelled so, as segments; None if they lie in no order that is known."""
    runs: list[tuple[str, int, int]] = []
    for level, number in labels:
        if runs and runs[-1][:2] == (level, number):
            runs[-1] = (level, number, runs[-1][2] + 1)
        else:
            runs.append((level, number, 1))
    out: list[Segment] = []
    at = 0
    while at < len(runs):
        level, _, width = runs[at]
        if level == "across":
            return None
        if level == "fixed":
            out.append(Segment("once", (Item("fixed", width),)))
            at += 1
            continue
        taken = _straight(runs, at, blocks) or _periodic(runs, at, blocks)
        if taken is None:
            return None
        segment, used = taken
        out.append(segment)
        at += used
    return tuple(out)


def _straight(runs: list[tuple[str, int, int]], at: int, blocks: Blocks) -> tuple[Segment, int] | None:
    """As many equal runs as there are heads, or groups, in order."""
    level, _, width = runs[at]
    count = blocks.heads if level == "head" else blocks.groups
    if runs[at : at + count] != [(level, number, width) for number in range(count)]:
        return None
    item = Item("head", width) if level == "head" else Item("group", width)
    return Segment("head" if level == "head" else "group", (item,)), count


def _periodic(runs: list[tuple[str, int, int]], at: int, blocks: Blocks) -> tuple[Segment, int] | None:
    """The same items for each group: those of its heads one after the other, and its own."""
    each = blocks.heads // blocks.groups
    rest = runs[at:]
    for length in range(2, len(rest) // blocks.groups + 1):
        period = rest[:length]
        wanted = [
            (level, number + group * (each if level == "head" else 1), width)
            for group in range(blocks.groups)
            for level, number, width in period
        ]
        if rest[: len(wanted)] != wanted:
            continue
        items = _items(period, each)
        if items is not None:
            return Segment("group", items), len(wanted)
    return None


def _items(period: list[tuple[str, int, int]], each: int) -> tuple[Item, ...] | None:
    """The items of the first group: a run of heads 0, 1, ... is one item."""
    items: list[Item] = []
    at = 0
    while at < len(period):
        level, _, width = period[at]
        if level == "head":
            if period[at : at + each] != [("head", number, width) for number in range(each)]:
                return None
            items.append(Item("head", width))
            at += each
        elif level == "group":
            items.append(Item("group", width))
            at += 1
        else:
            return None
    return tuple(items)
