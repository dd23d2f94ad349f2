"""Calibration sequences on their way through the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.calibration.activations import Activations, MemoryBudget
from secateur.model.streamed import Call, StreamedModel
from secateur.system import distributed
from secateur.system.halving import AtOnce, in_parts, of

T = TypeVar("T")
TOKENS_PER_BATCH = 2048


def batches_of(tokens: Tensor) -> list[Tensor]:
    """Cuts token ids (n, length) into batches of about `TOKENS_PER_BATCH` tokens; returns this rank's share.

    The batches are the same however many ranks there are, only who takes them differs: what a batch
    contributes is then the same to the last bit, and so, but for the order of a double precision sum, are
    the statistics.
    """
    batches = list(tokens.split(max(1, TOKENS_PER_BATCH // tokens.shape[1])))
    return batches[distributed.share(len(batches))]


def first_of(tokens: Tensor, count: int) -> Tensor:
    """The first of some sequences (n, length), of about `count` tokens together; one at least."""
    return tokens[: max(1, count // tokens.shape[1])]


@dataclass
class Stream:
    """Calibration sequences on their way through the model: token batches, hidden states, layer arguments.

    Args:
        calls: what each layer is called with, by the batch or by the shape of its ids.
        alone: the same for the first sequence of such a batch alone, which tells what of it belongs to sequences:
            that is divided where memory doesn't suffice for a batch. Empty on a CPU.
        room: for how many sequences it has sufficed.
    """

    batches: list[Tensor]
    states: Activations
    calls: dict[torch.Size | int, list[Call]]
    alone: dict[torch.Size | int, list[Call]] = field(default_factory=dict)
    room: AtOnce = field(default_factory=AtOnce)

    @classmethod
    def start(cls, streamed: StreamedModel, batches: list[Tensor], budget: MemoryBudget, file: Path | None) -> Stream:
        """Runs the embeddings. `batches`: token ids, each (batch, tokens)."""
        stream = cls(batches, Activations(budget, file), {})
        for i, ids in enumerate(batches):
            stream.states[i], calls = streamed.embed(ids)
            # What a layer is handed may depend on the tokens; of listed architectures it's known that it doesn't.
            key = i if streamed.checkpoint.family.anatomies else ids.shape
            if streamed.device.type != "cpu" and len(ids) > 1 and key not in stream.alone:
                stream.alone[key] = streamed.embed(ids[:1])[1]
            stream.calls[key] = calls
        return stream

    def with_states(self, states: Activations) -> Stream:
        """The same sequences elsewhere on their way."""
        return replace(self, states=states)

    def calls_of(self, batch: int, rows: slice | None = None) -> list[Call]:
        """What each layer is called with for a batch, or for some of its sequences."""
        key = batch if batch in self.calls else self.batches[batch].shape
        if rows is None or rows == slice(0, len(self.batches[batch])):
            return self.calls[key]
        return [of_rows(*pair, rows) for pair in zip(self.calls[key], self.alone[key], strict=True)]

    def forward(
        self,
        layer: nn.Module,
        index: int,
        batch: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
        behind: Sequence[tuple[int, nn.Module]] = (),
    ) -> Tensor:
        """Batch `batch` through `layer`, which stands at place `index` of the model; sequence by sequence, if memory
        doesn't suffice for more.

        Args:
            dtype: of the hidden states that go in; their own unless given.
            behind: more layers, each with its place, that it goes through afterwards.
        """
        found = list(
            self.parts(batch, device, lambda rows: self.part(layer, index, batch, rows, device, dtype, behind))
        )
        return found[0] if len(found) == 1 else torch.cat(found)

    def parts(self, batch: int, device: torch.device, run: Callable[[slice], T]) -> Iterator[T]:
        """Yields what `run` makes of some sequences of a batch after the other: of all at once, or of as many as
        memory suffices for."""
        return in_parts(lambda part: run(of(part)), range(len(self.batches[batch])), device, self.room)

    def part(
        self,
        layer: nn.Module,
        index: int,
        batch: int,
        rows: slice,
        device: torch.device,
        dtype: torch.dtype | None = None,
        behind: Sequence[tuple[int, nn.Module]] = (),
    ) -> Tensor:
        """`forward` for some of the batch's sequences, whatever memory there is."""
        calls, hidden = self.calls_of(batch, rows), self.states.to(batch, device, dtype)
        hidden = of_sequences(hidden, self.batches[batch].shape, rows)
        for place, module in ((index, layer), *behind):
            hidden = calls[place](module, hidden)
        return hidden

    def advance(self, layer: nn.Module, index: int, device: torch.device) -> None:
        """Replaces every hidden state by what `layer` makes of it."""
        for i in range(len(self.batches)):
            self.states[i] = self.forward(layer, index, i, device)


def of_sequences(hidden: Tensor, shape: torch.Size, rows: slice, tokens: int | None = None) -> Tensor:
    """Hidden states of some sequences of a batch, wherever a class has those: a token may have several states, before
    the batch (Gemma 3n) or behind the tokens (DeepSeek V4).

    Args:
        hidden: of a batch of token ids.
        shape: of those ids, (sequences, tokens).
        tokens: the first so many; None = all.
    """
    axis = next((n for n in range(hidden.dim() - 1) if hidden.shape[n : n + 2] == shape), 0)
    found = hidden.narrow(axis, rows.start, rows.stop - rows.start)
    return found if tokens is None else found.narrow(axis + 1, 0, tokens)


def of_rows(whole: Call, alone: Call, rows: slice) -> Call:
    """What a layer is called with for some of the sequences that `whole` is for, as `alone` is for one."""

    def divided(value: Any, one: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape == one.shape:
            return value
        each = len(one)  # several rows a sequence, where heads are folded in
        return value[rows.start * each : rows.stop * each]

    leaves, form = pytree.tree_flatten((whole.args, dict(whole.kwargs)))
    others = pytree.tree_leaves((alone.args, dict(alone.kwargs)))
    args, kwargs = pytree.tree_unflatten(map(divided, leaves, others), form)
    return Call(args, kwargs, whole.skipped)
