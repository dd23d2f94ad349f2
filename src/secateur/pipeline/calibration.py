"""Calibration text for a checkpoint: drawn by one protocol, as its head is used to see it, and not alone.

A repair finds what the pruned model's activations say of the dense model's. From one kind of text it also learns what
holds in that kind alone, and loses on others: solved on stories, a model forgets code. A few sequences of another
kind take that away and cost the calibration's own domain next to nothing (docs/quality.md has the figures). Every
Python installation has prose and code to take them from.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from secateur.data.batches import Calibration, calibration_batches, framed
from secateur.data.documents import load_corpus
from secateur.data.mixture import calibration_of, mixed
from secateur.errors import InputError, ResourceError
from secateur.evaluation.loading import load_tokenizer
from secateur.model.checkpoint import Checkpoint
from secateur.model.heads import head_of

GENERAL = "stdlib"
CHARACTERS = 8  # of text for a token: about twice of what it takes
UNKNOWN = 0.05  # of its tokens; above it a vocabulary isn't made for such text


def calibration_for(checkpoint: Checkpoint, source: str, samples: int, length: int, seed: int) -> Calibration:
    """Sequences of one source or several; those for classifiers and embeddings begin and end as their texts do.

    Raises:
        InputError: see `calibration_of`.
    """
    vocabulary = int(checkpoint.config.vocab_size)
    return _as_used(checkpoint, calibration_of(source, checkpoint.tokenizer, samples, length, seed, vocabulary))


def _as_used(checkpoint: Checkpoint, calibration: Calibration) -> Calibration:
    head = head_of(checkpoint.whole_config)
    tokenizer = None if head is None or head.tokens else load_tokenizer(checkpoint.path)
    return calibration if tokenizer is None else framed(calibration, tokenizer)


def with_general(checkpoint: Checkpoint, calibration: Calibration, ratio: float, seed: int) -> Calibration:
    """The sequences of a calibration and `ratio` times as many of general text, at least one, in a mixed order.

    The held-out sequences stay those of the calibration. Where no general text can be had, or the vocabulary isn't
    made for it, nothing is added, and a note says so.
    """
    count, length = calibration.tokens.shape
    try:
        general = general_text(checkpoint, max(1, round(ratio * count)), length, seed)
    except (InputError, ResourceError) as error:  # no tokenizer, ids beyond the vocabulary, a library without sources
        return _alone(calibration, str(error))
    unknown = getattr(checkpoint.tokenizer(), "unk_token_id", None)
    if unknown is not None and float((general.tokens == unknown).float().mean()) > UNKNOWN:
        return _alone(calibration, "the vocabulary isn't made for it")
    both = mixed([calibration, general], calibration.source, seed)
    return replace(both, held_out=calibration.held_out, notes=calibration.notes, general=len(general.tokens))


def general_text(checkpoint: Checkpoint, samples: int, length: int, seed: int) -> Calibration:
    """Sequences of general text, each of other documents: only those that the seed draws are tokenised.

    Raises:
        InputError: no tokenizer, or one that gives ids beyond the vocabulary.
        ResourceError: the Python installation has no sources.
    """
    corpus, most = load_corpus(GENERAL), CHARACTERS * length
    texts = corpus.documents or ()
    drawn = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    pieces: list[str] = []
    missing = samples * most
    while missing > 0 and drawn:
        pieces.append(texts[drawn.pop()][:most])
        missing -= len(pieces[-1])
    few = replace(corpus, documents=tuple(pieces), shipped=False)
    vocabulary = int(checkpoint.config.vocab_size)
    found = calibration_batches(few, checkpoint.tokenizer(), samples, length, seed, 0, vocab_size=vocabulary)
    return _as_used(checkpoint, found)


def _alone(calibration: Calibration, why: str) -> Calibration:
    return replace(calibration, notes=(*calibration.notes, f"no general text beside the calibration text: {why}"))
