"""Calibration sequences on their way through the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.calibration.activations import Activations, MemoryBudget
from secateur.model.streamed import Call, StreamedModel
from secateur.system import distributed

TOKENS_PER_BATCH = 2048


def batches_of(tokens: Tensor) -> list[Tensor]:
    """Cuts token ids (n, length) into batches of about `TOKENS_PER_BATCH` tokens; returns this rank's share.

    The batches are the same however many ranks there are, only who takes them differs: what a batch
    contributes is then the same to the last bit, and so, but for the order of a double precision sum, are
    the statistics.
    """
    batches = list(tokens.split(max(1, TOKENS_PER_BATCH // tokens.shape[1])))
    return batches[distributed.share(len(batches))]


@dataclass
class Stream:
    """Calibration sequences on their way through the model: token batches, hidden states, layer arguments."""

    batches: list[Tensor]
    states: Activations
    calls: dict[torch.Size | int, list[Call]]

    @classmethod
    def start(cls, streamed: StreamedModel, batches: list[Tensor], budget: MemoryBudget, file: Path | None) -> Stream:
        """Runs the embeddings. `batches`: token ids, each (batch, tokens)."""
        stream = cls(batches, Activations(budget, file), {})
        for i, ids in enumerate(batches):
            stream.states[i], calls = streamed.embed(ids)
            # What a layer is handed may depend on the tokens; of listed architectures it's known that it doesn't.
            stream.calls[i if streamed.checkpoint.family.anatomies else ids.shape] = calls
        return stream

    def calls_of(self, batch: int) -> list[Call]:
        """What each layer is called with for a batch."""
        return self.calls[batch] if batch in self.calls else self.calls[self.batches[batch].shape]

    def forward(
        self,
        layer: nn.Module,
        index: int,
        batch: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
        behind: Sequence[tuple[int, nn.Module]] = (),
    ) -> Tensor:
        """Batch `batch` through `layer`, which stands at place `index` of the model.

        Args:
            dtype: of the hidden states that go in; their own unless given.
            behind: more layers, each with its place, that it goes through afterwards.
        """
        calls, hidden = self.calls_of(batch), self.states.to(batch, device, dtype)
        for place, module in ((index, layer), *behind):
            hidden = calls[place](module, hidden)
        return hidden

    def advance(self, layer: nn.Module, index: int, device: torch.device) -> None:
        """Replaces every hidden state by what `layer` makes of it."""
        for i in range(len(self.batches)):
            self.states[i] = self.forward(layer, index, i, device)
