"""Calibration text for a checkpoint: drawn by one protocol, and as its head is used to see it."""

from __future__ import annotations

from secateur.data.batches import Calibration, framed
from secateur.data.mixture import calibration_of
from secateur.evaluation.loading import load_tokenizer
from secateur.model.checkpoint import Checkpoint
from secateur.model.heads import head_of


def calibration_for(checkpoint: Checkpoint, source: str, samples: int, length: int, seed: int) -> Calibration:
    """Sequences of one source or several; those for classifiers and embeddings begin and end as their texts do.

    Raises:
        InputError: see `calibration_of`.
    """
    vocabulary = int(checkpoint.config.vocab_size)
    found = calibration_of(source, checkpoint.tokenizer, samples, length, seed, vocabulary)
    head = head_of(checkpoint.whole_config)
    tokenizer = None if head is None or head.tokens else load_tokenizer(checkpoint.path)
    return found if tokenizer is None else framed(found, tokenizer)
