"""Perplexity of a model that need not fit in memory: the same windows, block by block from disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from secateur.calibration.activations import Activations, MemoryBudget
from secateur.calibration.stream import TOKENS_PER_BATCH, Stream, of_sequences
from secateur.data.documents import load_corpus
from secateur.data.sources import split_specs
from secateur.evaluation.evaluation import figures_of
from secateur.evaluation.loading import load_tokenizer
from secateur.evaluation.perplexity import batches, check_finite, pad, score_rows, total
from secateur.evaluation.windows import Window, evaluation_length, windows
from secateur.model.streamed import StreamedModel
from secateur.report.schema.figures import LossFigures, TextFigures


@torch.no_grad()
def evaluate_streamed(
    streamed: StreamedModel,
    data: str,
    budget: MemoryBudget | None = None,
    work: Path | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> LossFigures:
    """What `evaluate` says of a model, but for its speed, its zeros and its distance from another.

    Args:
        streamed: the opened checkpoint; what surrounds its layers is released at the end.
        data: held-out text, see `evaluate`.
        budget: bytes of hidden states that may stay in memory; None = all.
        work: folder for those that may not.
        step: called after each block.
    """
    checkpoint = streamed.checkpoint
    vocabulary, length = checkpoint.config.vocab_size, evaluation_length(checkpoint.config)
    tokenizer = load_tokenizer(checkpoint.path)
    corpora = [load_corpus(spec, split="held_out") for spec in split_specs(data)]
    found = [windows(corpus, tokenizer, length, vocabulary) for corpus in corpora]
    every = [window for part in found for window in part]
    sums = _sums(streamed, every, budget or MemoryBudget(None), work, step)
    streamed.release()
    sets: dict[str, TextFigures] = {}
    first = 0
    for corpus, part in zip(corpora, found, strict=True):
        score = total(part, float(sums[first : first + len(part)].sum()))
        first += len(part)
        sets[corpus.name] = figures_of(corpus, score)
    return {"model": str(checkpoint.path), **next(iter(sets.values())), "sets": sets, "length": length}


def _sums(
    streamed: StreamedModel, found: list[Window], budget: MemoryBudget, work: Path | None, step: Callable[[str], None]
) -> torch.Tensor:
    """Negative log-likelihood of each window, nats, fp64."""
    lengths = [len(window.ids) for window in found]
    order = list(batches(lengths, 1, TOKENS_PER_BATCH))
    rows = [[found[index] for index in batch] for batch in order]
    file = work / "evaluated.bin" if work is not None else None
    stream = Stream.start(streamed, [pad([window.ids for window in part]) for part in rows], budget, file)
    streamed.release()
    try:
        for index in range(streamed.checkpoint.layers):
            stream.advance(streamed.load(index), index, streamed.device)
            step(f"layer {index}")
        return _score(streamed, rows, order, stream.states, len(found))
    finally:
        stream.states.close()


def _score(
    streamed: StreamedModel,
    rows: list[list[Window]],
    order: list[list[int]],
    states: Activations,
    count: int,
) -> torch.Tensor:
    sums = torch.zeros(count, dtype=torch.float64)
    for i, part in enumerate(rows):
        shape = torch.Size((len(part), max(len(window.ids) for window in part)))
        # One row at a time: logits are wider than anything before them.
        for position, window in enumerate(part):
            row = window.ids
            hidden = of_sequences(states[i], shape, slice(position, position + 1), len(row))
            logits = streamed.logits(pad([row]), hidden)
            sums[order[i][position]] = score_rows([row], logits, counts=[window.counts])[0, 0]
    check_finite(sums)
    return sums
