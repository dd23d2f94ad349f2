"""What several continuations have in common is computed once: a row is a common beginning and the branches after it.

    The sky is | blue.      goes through the model as    The sky is blue . green and
               | green and white.

Each token of a branch sees the beginning and its own branch, by an attention mask, at the positions that it has in
its own text. The last token of a continuation is only predicted, so it goes in nowhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.evaluation.tasks.encode import Pair


class Row(NamedTuple):
    """A beginning and the branches after it, side by side.

    ids        token ids
    positions  of each in its own text
    branch     0 for the beginning, 1, 2, ... for the branches
    places     for each pair, where in `ids` each token of its continuation is predicted
    targets    for each pair, those tokens
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    branch: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]

    @property
    def branches(self) -> int:
        return max(self.branch)

    @property
    def predicted(self) -> int:
        return sum(map(len, self.targets))


def shared_row(pairs: Sequence[Pair]) -> Row:
    """The row of some pairs. One pair alone is a row without branches."""
    texts = [(*pair.context, *pair.continuation[:-1]) for pair in pairs]
    common = len(texts[0]) if len(texts) == 1 else _common(texts)
    ids, positions, branch = list(texts[0][:common]), list(range(common)), [0] * common
    places = []
    for number, (pair, text) in enumerate(zip(pairs, texts, strict=True), 1):
        offset = len(ids) - common
        ids += text[common:]
        positions += range(common, len(text))
        branch += [number] * (len(text) - common)
        first = len(pair.context) - 1
        places.append(tuple(i if i < common else i + offset for i in range(first, len(text))))
    targets = tuple(pair.continuation for pair in pairs)
    return Row(tuple(ids), tuple(positions), tuple(branch), tuple(places), targets)


def _common(texts: Sequence[tuple[int, ...]]) -> int:
    shortest = min(map(len, texts))
    return next((i for i in range(shortest) if any(text[i] != texts[0][i] for text in texts)), shortest)


def together(rows: Sequence[Row], most_tokens: int, most_predicted: int) -> Iterator[list[int]]:
    """Indices of rows that go through the model together: longest first, so that a lack of memory shows at once."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids))
    batch: list[int] = []
    for index in order:
        if batch:
            longest = len(rows[batch[0]].ids)
            predicted = sum(rows[i].predicted for i in batch) + rows[index].predicted
            if (len(batch) + 1) * longest > most_tokens or predicted > most_predicted:
                yield batch
                batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(rows: Sequence[Sequence[int]], fill: int = 0) -> Tensor:
    """(rows, longest), filled on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *itertools.repeat(fill, longest - len(row))] for row in rows])


def mask_of(rows: Sequence[Row], dtype: torch.dtype) -> Tensor:
    """What each place may see, as something to add to attention scores: 0, or the least number of `dtype`.

    Returns: (rows, 1, longest, longest).
    """
    branch = padded([row.branch for row in rows], -1)
    sees = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    sees &= torch.ones(sees.shape[1:], dtype=torch.bool).tril()
    # A place that may see nothing would be a division by zero; filled ones see the beginning too.
    return torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]
