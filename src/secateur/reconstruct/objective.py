"""What a block is tuned towards: the untouched model's output there, or, behind the last block, its predictions.

output        the mean over the tokens of |out - target|² / |target|²: whatever reads the stream norms it token by
              token, and of the few tokens with huge activations, which most models have, the squares would be nearly
              all of a plain sum. Where there are weights, E w (out - target)² / E w target² instead
predictions   Kullback-Leibler divergence KL(p ‖ q) of the model's predictions q, with the block as it is, from
              the untouched model's p: what all blocks are there for. Nothing comes behind the last one that could
              make up for anything, and its errors cost the predictions more in one direction than in another.
              While it is tuned, GUARD times the relative error is added: a few sequences are soon known by heart,
              and the output says more of what the untouched block does with them than the predictions alone
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.calibration.activations import Activations, MemoryBudget
from secateur.calibration.loss_weights import LossWeights
from secateur.calibration.walk import Block
from secateur.config.presets import Window
from secateur.numerics.divergence import forward_kl
from secateur.numerics.linalg import wide_dtype
from secateur.reconstruct.sequences import SequenceBatch
from secateur.reconstruct.window import ahead
from secateur.system import accelerator, distributed

GUARD = 4.0  # measured on stories3M at 2:4: held-out divergence 0.653 with 0, 0.627 with 1, 0.621 with 4
TINY = 1e-12  # beside the mean square of a token
LOGITS = 2**24  # numbers of one piece of the predictions, which are too many at once for a large vocabulary


@dataclass(frozen=True)
class BlockObjective:
    """The untouched window's outputs on each calibration sequence, and how far from them a layer's are."""

    block: Block
    targets: Activations
    behind: list[tuple[int, nn.Module]]
    weights: LossWeights | None = None

    predictions = False

    def _both(self, layer: nn.Module, part: SequenceBatch) -> tuple[Tensor, Tensor]:
        """(output, target) of some sequences, fp32."""
        block, device = self.block, self.block.streamed.device
        with self._products():
            given = layer, block.index, part.batch
            if part.whole is not None:
                out = block.stream.part(*given, part.rows, device, torch.float32, self.behind)
            elif torch.is_grad_enabled():  # whoever goes back through it halves the step
                whole = slice(0, len(block.stream.batches[part.batch]))
                out = block.stream.part(*given, whole, device, torch.float32, self.behind)[part.rows]
            else:
                out = block.stream.forward(*given, device, torch.float32, self.behind)[part.rows]
        return out.float(), self.targets[part.batch][part.rows].to(device).float()

    def _products(self) -> torch.autocast:
        """Products are taken in bf16 where the model computes in half precision, those of a step also where the
        hardware is faster at them; what is measured without a gradient is as exact as the model."""
        device, half = self.block.streamed.device, self.block.streamed.dtype != torch.float32
        half = half or (torch.is_grad_enabled() and accelerator.multiplies_bf16(device))
        return torch.autocast(device.type, torch.bfloat16, enabled=half)

    def _roots(self, part: SequenceBatch) -> Tensor:
        """Of the weights of some sequences."""
        device = self.block.streamed.device
        if self.weights is None:
            return self.targets[part.batch][part.rows].to(device).float().square().mean(-1, True).add(TINY).rsqrt()
        place = self.behind[-1][0] if self.behind else self.block.index
        return self.weights.of(place, part.batch)[part.rows].to(device).sqrt()

    def _weighted(self, layer: nn.Module, part: SequenceBatch) -> tuple[Tensor, Tensor]:
        """The same, each times the root of its weight."""
        roots, (out, target) = self._roots(part), self._both(layer, part)
        return roots * out, roots * target

    def loss(self, layer: nn.Module, part: SequenceBatch) -> Tensor:
        """What one step makes smaller; of some sequences of a step, their share of it."""
        out, target = self._weighted(layer, part)
        return (out - target).square().sum() / self._size(part.whole or part)

    def _size(self, part: SequenceBatch) -> Tensor:
        """Sum of the squares of the targets, one sequence after the other; nothing runs for it."""
        device = self.block.streamed.device
        total = torch.zeros((), device=device)
        for one in part.divided(1):
            total += (self._roots(one) * self.targets[one.batch][one.rows].to(device).float()).square().sum()
        return total

    @torch.no_grad()
    def error(self, layer: nn.Module, parts: list[SequenceBatch]) -> float | None:
        """Over the sequences of all ranks; None without any."""
        device = self.block.streamed.device
        sums = torch.zeros(2, dtype=wide_dtype(device), device=device)
        for part in parts:
            sums += self._sums(layer, part)
        distributed.all_reduce([sums])
        return float(sums[0] / sums[1]) if float(sums[1]) else None

    def _sums(self, layer: nn.Module, part: SequenceBatch) -> Tensor:
        """(what is lost, what it is measured by), fp64 where there is that."""
        out, target = self._weighted(layer, part)
        wide = wide_dtype(out.device)
        return torch.stack([(out - target).square().sum(dtype=wide), target.square().sum(dtype=wide)])


class Predictions(BlockObjective):
    """The untouched model's predictions; the window ends with the model."""

    predictions = True

    def loss(self, layer: nn.Module, part: SequenceBatch) -> Tensor:
        out, target = self._both(layer, part)
        slopes = torch.empty_like(out)
        with torch.enable_grad():
            for rows, ids in self._pieces(part, out):
                hidden = out.detach()[rows].requires_grad_(True)
                with self._products():
                    divergence = self._divergence(ids, hidden, target[rows])
                slopes[rows] = torch.autograd.grad(divergence, hidden)[0]
        # The first term's value means nothing; its gradient is that of the mean divergence.
        whole = part.whole or part
        tokens = out[..., 0].numel() // part.size * whole.size
        lost = (self._roots(part) * (out - target)).square().sum() / self._size(whole)
        return (out * slopes).sum() / tokens + GUARD * lost

    def _sums(self, layer: nn.Module, part: SequenceBatch) -> Tensor:
        out, target = self._both(layer, part)
        sums = torch.zeros(2, dtype=wide_dtype(out.device), device=out.device)
        for rows, ids in self._pieces(part, out):
            sums[0] += self._divergence(ids, out[rows], target[rows])
        sums[1] += out[..., 0].numel()
        return sums

    def _pieces(self, part: SequenceBatch, out: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
        """(sequences and tokens, their ids), few enough at once for the logits to fit."""
        ids = self.block.stream.batches[part.batch][part.rows].to(out.device)
        some = max(1, LOGITS // int(self.block.streamed.checkpoint.config.vocab_size))
        rows, columns = max(1, some // ids.shape[1]), min(some, ids.shape[1])
        for row in range(0, ids.shape[0], rows):
            for column in range(0, ids.shape[1], columns):
                piece = slice(row, row + rows), slice(column, column + columns)
                yield piece, ids[piece]

    def _divergence(self, ids: Tensor, hidden: Tensor, target: Tensor) -> Tensor:
        """KL(p ‖ q) in nats, over all tokens together; hidden states (sequences, tokens, hidden)."""
        streamed = self.block.streamed
        with torch.no_grad():
            teacher = streamed.lm_head(ids, target).flatten(0, -2)
        return forward_kl(streamed.lm_head(ids, hidden).flatten(0, -2), teacher)


@contextmanager
def objective_of(
    block: Block, budget: MemoryBudget, window: Window, weights: LossWeights | None, predictions: bool
) -> Iterator[BlockObjective]:
    """The untouched window's outputs on the untouched stream; their memory and file are gone at the end.

    Args:
        predictions: compare those, if the window ends with the model and it predicts a next token.
    """
    assert block.dense is not None, "reconstruction asks for walk(..., dense=True)"
    layer, stream = block.dense
    targets, behind = Activations(budget, stream.states.beside("targets")), ahead(block, window)
    checkpoint = block.streamed.checkpoint
    ends = block.index + len(behind) == checkpoint.layers - 1 and checkpoint.family.causal
    try:
        with torch.no_grad():
            for i in range(len(stream.batches)):
                targets[i] = stream.forward(layer, block.index, i, block.streamed.device, behind=behind)
        yield (Predictions if predictions and ends else BlockObjective)(block, targets, behind, weights)
    finally:
        targets.close()
