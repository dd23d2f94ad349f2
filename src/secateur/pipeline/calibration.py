"""Calibration text for a checkpoint: drawn by one protocol, as its head is used to see it, and not alone.

A repair finds what the pruned model's activations say of the dense model's. From one kind of text it also learns what
holds in that kind alone, and loses on others: solved on stories, a model forgets code. A few sequences of another
kind take that away and cost the calibration's own domain next to nothing (docs/quality.md has the figures). Every
Python installation has prose and code to take them from.
"""

from __future__ import annotations

from dataclasses import replace

from secateur.data.batches import Calibration, framed
from secateur.data.mixture import calibration_of, mixed
from secateur.errors import InputError, ResourceError
from secateur.evaluation.loading import load_tokenizer
from secateur.model.checkpoint import Checkpoint
from secateur.model.heads import head_of

GENERAL = "stdlib"
UNKNOWN = 0.05  # of its tokens; above it a vocabulary isn't made for such text


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


def with_general(checkpoint: Checkpoint, calibration: Calibration, ratio: float, seed: int) -> Calibration:
    """The sequences of a calibration and `ratio` times as many of general text, at least one, in a mixed order.

    The held-out sequences stay those of the calibration. Where no general text can be had, or the vocabulary isn't
    made for it, nothing is added, and a note says so.
    """
    count, length = calibration.tokens.shape
    try:
        general = calibration_for(checkpoint, GENERAL, max(1, round(ratio * count)), length, seed)
    except (InputError, ResourceError) as error:  # no tokenizer, ids beyond the vocabulary, a library without sources
        return _alone(calibration, str(error))
    unknown = getattr(checkpoint.tokenizer(), "unk_token_id", None)
    if unknown is not None and float((general.tokens == unknown).float().mean()) > UNKNOWN:
        return _alone(calibration, "the vocabulary isn't made for it")
    both = mixed([calibration, general], calibration.source, seed)
    return replace(both, held_out=calibration.held_out, notes=calibration.notes, general=len(general.tokens))


def _alone(calibration: Calibration, why: str) -> Calibration:
    return replace(calibration, notes=(*calibration.notes, f"no general text beside the calibration text: {why}"))
