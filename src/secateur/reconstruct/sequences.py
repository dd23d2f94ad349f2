"""Which calibration sequences a block is tuned on, and which decide when to stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

HELD_OUT = 8  # one sequence in this many is kept for stopping


class SequenceBatch(NamedTuple):
    """Some sequences of one batch.

    Args:
        whole: those of a step, of which these are some because memory didn't suffice for all at once.
    """

    batch: int
    rows: slice
    whole: SequenceBatch | None = None

    @property
    def size(self) -> int:
        return self.rows.stop - self.rows.start

    def divided(self, most: int | None) -> list[SequenceBatch]:
        """The same sequences, no more than `most` at once; itself if it has no more."""
        if most is None or self.size <= most:
            return [self]
        starts = range(self.rows.start, self.rows.stop, most)
        return [SequenceBatch(self.batch, slice(i, min(i + most, self.rows.stop)), self) for i in starts]


def split(sizes: Sequence[int]) -> tuple[list[SequenceBatch], list[SequenceBatch]]:
    """(to tune on, to stop by), disjoint. Whole batches where there are several; a single batch is divided, and
    a single sequence is tuned on.

    Args:
        sizes: sequences in each of this rank's batches.
    """
    if len(sizes) == 1:
        held = -(-sizes[0] // HELD_OUT) if sizes[0] > 1 else 0
        first = sizes[0] - held
        return [SequenceBatch(0, slice(0, first))], [SequenceBatch(0, slice(first, sizes[0]))] if held else []
    held_batches = set(range(HELD_OUT - 1, len(sizes), HELD_OUT)) or set(range(len(sizes))[-1:])
    parts = [SequenceBatch(i, slice(0, size)) for i, size in enumerate(sizes)]
    return [p for p in parts if p.batch not in held_batches], [p for p in parts if p.batch in held_batches]


def in_turn(parts: Sequence[SequenceBatch], seed: int) -> Iterator[SequenceBatch | None]:
    """All parts in random order, then in another, and so on; always None for a rank that got no sequences."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for i in torch.randperm(len(parts), generator=generator).tolist():
            yield parts[i]
        if not parts:
            yield None
