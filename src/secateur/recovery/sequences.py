"""What is trained on: sequences of equal length, their labels, and some held out that decide which state is best.

Running text is joined, each document behind its BOS, and cut into pieces (the calibration protocol). Task data is
packed: whole examples side by side in a row, each with positions of its own, so that none sees another.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from secateur.data.mixture import calibration_of
from secateur.errors import InputError
from secateur.recovery.examples import Example, is_task_data, read_examples
from secateur.recovery.losses import IGNORED

HELD_OUT = 32  # sequences that choose the best state, and as many that the report is measured on
SHARE = 10  # of a short source, one sequence in so many is held out for each of the two


@dataclass(frozen=True)
class Rows:
    """Sequences: token ids, labels (an id, or IGNORED) and, for packed rows, positions; each int64 (n, length).

    Of models that predict no next token labels are classes, of texts one each, and rows may be padded: `mask`.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, index: Any) -> Rows:
        more = (None if tensor is None else tensor[index] for tensor in (self.positions, self.mask))
        return Rows(self.ids[index], self.labels[index], *more)

    def inputs(self) -> dict[str, Tensor]:
        """By the names under which a model takes them."""
        found = {"input_ids": self.ids, "labels": self.labels}
        more = {"position_ids": self.positions, "attention_mask": self.mask}
        return found | {name: tensor for name, tensor in more.items() if tensor is not None}

    def documents(self) -> list[list[int]]:
        """The sequences, or the examples that are packed in them, each alone and without padding."""
        if self.mask is not None:
            return [row[kept].tolist() for row, kept in zip(self.ids, self.mask.bool(), strict=True)]
        if self.positions is None:
            return self.ids.tolist()
        found = []
        for ids, labels, positions in zip(self.ids, self.labels, self.positions, strict=True):
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
            for first, last in itertools.pairwise(starts):
                if bool((labels[first:last] != IGNORED).any()):
                    found.append(ids[first:last].tolist())
        return found


@dataclass(frozen=True)
class Text:
    """All sequences of a run.

    held_out   decides the learning rate, the best state, and whether anything was gained
    reported   for the figures before and after, none of them in the other two
    sha256     of the training ids and labels
    """

    train: Rows
    held_out: Rows
    reported: Rows
    source: str
    source_sha256: str
    sha256: str
    notes: tuple[str, ...] = ()


class Draw(Dataset[dict[str, Tensor]]):
    """Steps x batch sequences in the order in which they are trained on: permuted anew each time round.

    Args:
        extra: more tensors of each sequence, (n, ...): the teacher's top logits.
    """

    def __init__(self, rows: Rows, count: int, seed: int, extra: dict[str, Tensor] | None = None) -> None:
        self._tensors = rows.inputs() | (extra or {})
        generator = torch.Generator().manual_seed(seed)
        rounds = -(-count // len(rows))
        orders = [torch.randperm(len(rows), generator=generator) for _ in range(rounds)]
        self._order = torch.cat(orders)[:count].tolist()

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[self._order[index]] for name, tensor in self._tensors.items()}


def read_text(
    spec: str, tokenizer: Any | None, wanted: int, length: int, seed: int, vocabulary: int, pack: bool = True
) -> Text:
    """Up to `wanted` sequences to train on, and the held-out ones.

    Args:
        spec: one source or several with their shares (see `data.mixture`), or task data (see `examples`).
        pack: task data: several examples a row. False where a model can't keep them apart.

    Raises:
        InputError: data that can't be read, or too little of it.
    """
    notes: tuple[str, ...] = ()
    if is_task_data(spec):
        examples, digest = read_examples(spec, tokenizer)
        rows, notes = packed(examples, length, spec, pack)
        rows = rows.part(torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)))
        name = spec
    else:
        drawn = calibration_of(spec, lambda: tokenizer, wanted + 2 * HELD_OUT, length, seed, vocabulary, "--data")
        labels = drawn.tokens if drawn.counts is None else drawn.tokens.masked_fill(~drawn.counts, IGNORED)
        rows, name, digest, notes = Rows(drawn.tokens, labels), drawn.source, drawn.source_sha256, drawn.notes
    return parted(rows, wanted, length, name, digest, notes)


def parted(rows: Rows, wanted: int, length: int, name: str, digest: str, notes: tuple[str, ...] = ()) -> Text:
    """Rows as those that are trained on and those that aren't.

    Raises:
        InputError: too few.
    """
    if len(rows) < 3:
        raise InputError(
            f"{name} gives {len(rows)} sequences of {length} tokens; 3 are the least (one to train on, two held out):"
            " use more text or a shorter --length"
        )
    held = max(1, min(HELD_OUT, len(rows) // SHARE))
    train = rows.part(slice(2 * held, 2 * held + wanted))
    if len(train) < wanted:
        notes = (f"{name} gives {len(train)} sequences; each is seen {wanted / len(train):.1f} times", *notes)
    sha256 = hashlib.sha256(train.ids.numpy().tobytes() + train.labels.numpy().tobytes()).hexdigest()
    return Text(train, rows.part(slice(held)), rows.part(slice(held, 2 * held)), name, digest, sha256, notes)


def packed(examples: list[Example], length: int, name: str, pack: bool = True) -> tuple[Rows, tuple[str, ...]]:
    """Examples side by side in rows of `length` tokens, in order; a row ends where the next doesn't fit.

    What is longer than a row loses its end. Padding is id 0, not learned, and at positions of its own.
    """
    bins: list[list[Example]] = []
    room, cut = 0, 0
    for example in examples:
        cut += len(example.ids) > length
        short = Example(example.ids[:length], example.labels[:length])
        if not bins or not pack or len(short.ids) > room:
            bins.append([])
            room = length
        bins[-1].append(short)
        room -= len(short.ids)
    ids, labels = torch.zeros(len(bins), length, dtype=torch.int64), torch.full((len(bins), length), IGNORED)
    positions = torch.zeros_like(ids)
    for row, members in enumerate(bins):
        at = 0
        for member in [*members, None]:
            size = len(member.ids) if member is not None else length - at
            positions[row, at : at + size] = torch.arange(size)
            if member is not None:
                ids[row, at : at + size] = torch.tensor(member.ids)
                labels[row, at : at + size] = torch.tensor(member.labels)
                labels[row, at] = IGNORED  # nothing before it that it could be predicted from
            at += size
    notes = (f"{name}: {cut} examples are longer than {length} tokens and lost their end",) if cut else ()
    return Rows(ids, labels, positions), notes


@torch.no_grad()
def keeps_apart(model: Any, length: int) -> bool:
    """Whether a model with positions that begin anew computes packed sequences as if each were alone."""
    half = max(2, min(8, length // 2))
    ids = torch.arange(2 * half, device=model.device).view(1, -1) % 7 + 1
    positions = torch.arange(half, device=model.device).repeat(2).view(1, -1)
    together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, half:]
    alone = model(input_ids=ids[:, half:], use_cache=False).logits
    return bool((together - alone).abs().max() <= 1e-3 * alone.abs().max().clamp_min(1e-6))
