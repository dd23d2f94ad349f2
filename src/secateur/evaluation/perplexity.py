"""Perplexity, bits per byte, and the divergence from another model, in one pass over the windows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from secateur.errors import InputError, SecateurError
from secateur.evaluation.progress import progress
from secateur.evaluation.windows import Window, context_length
from secateur.model.heads import head_of
from secateur.numerics.divergence import kl_of_each, nll_of_each
from secateur.numerics.precision import wide_dtype
from secateur.system.halving import in_parts

__all__ = ["Score", "context_length", "perplexity", "refuse_encoder"]

LOGITS_BYTES = {"cpu": 2**24}  # fp32, of one batch: what stays near a processor's caches is fastest;
LOGITS_BYTES_ELSE = 2**28  # an accelerator wants large batches. A single long window may need more than either.


@dataclass(frozen=True)
class Score:
    """Result over all windows.

    perplexity     exp(nll / tokens)
    nll            total negative log-likelihood of the predicted tokens, nats
    tokens         predicted tokens
    bits_per_byte  nll / ln 2 / UTF-8 bytes of the text behind the predicted tokens; None if unknown
    kl             mean over the predicted tokens of KL(reference || model), nats; None without a reference
    difference_stderr  standard error of the difference in nats a token from the reference; None without one
    """

    perplexity: float
    nll: float
    tokens: int
    windows: int
    text_bytes: float | None
    bits_per_byte: float | None
    kl: float | None = None
    difference_stderr: float | None = None


@torch.no_grad()
def perplexity(
    model: Any, found: list[Window], reference: Any | None = None, quiet: bool = True
) -> tuple[Score, Score | None]:
    """Score a causal language model, and a reference model with it, on windows made by `windows`.

    Logits are brought to fp32, sums over tokens are kept in fp64. Windows of similar length share a batch with
    padding on the right: the models are causal, so a padded place changes nothing before it, and it is not counted.

    Args:
        model, reference: `transformers` causal LMs in eval mode, on any device; one vocabulary size.

    Returns:
        The model's score, with `kl` if there is a reference, and the reference's score or None.

    Raises:
        InputError: an encoder, or vocabularies of different size.
        SecateurError: a logit that is not finite.
    """
    refuse_encoder(model.config)
    vocab = _vocab_size(model)
    if reference is not None:
        refuse_encoder(reference.config)
        if _vocab_size(reference) != vocab:
            raise InputError(
                f"the models have {vocab} and {_vocab_size(reference)} tokens; KL needs one vocabulary for both"
            )
    sums = torch.zeros(len(found), 3, dtype=torch.float64)  # nll, KL, reference's nll
    with progress("evaluating", sum(len(window.ids) for window in found), quiet) as advance:
        budget = LOGITS_BYTES.get(model.device.type, LOGITS_BYTES_ELSE)
        for batch in batches([len(window.ids) for window in found], vocab * 4, budget):
            own = [found[index] for index in batch]
            parts = in_parts(lambda some: _score_batch(some, model, reference), own, model.device)
            sums[batch] = torch.cat(list(parts))
            advance(sum(len(window.ids) for window in own))
    check_finite(sums)
    own, divergence, other = sums.sum(0).tolist()
    if reference is None:
        return total(found, own), None
    score = replace(total(found, own, divergence), difference_stderr=_error_between(found, sums))
    return score, total(found, other)


def _error_between(found: list[Window], sums: Tensor) -> float | None:
    """Of the two models' difference in nats a token: windows are the sample, a ratio of sums is estimated."""
    tokens = torch.tensor([window.predicted for window in found], dtype=torch.float64)
    between = sums[:, 0] - sums[:, 2]
    if len(found) < 2:
        return None
    rest = between - tokens * between.sum() / tokens.sum()
    return float((rest.square().sum() * len(found) / (len(found) - 1)).sqrt() / tokens.sum())


def check_finite(sums: Tensor) -> None:
    if not bool(sums.isfinite().all()):
        raise SecateurError(
            "the model computes infinite or undefined logits on this data. Below float32, use --dtype float32; in "
            "float32, its weights hold infinite or huge numbers"
        )


def refuse_encoder(config: Any) -> None:
    """Raise InputError for a model that doesn't predict the next token from the ones before it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    head = head_of(config)
    other = head is not None and not head.tokens
    if encoder or other or getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"a {config.model_type} model is not a causal language model and has no perplexity;"
            " evaluate it on its own task"
        )


def _vocab_size(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def batches(lengths: list[int], token_bytes: int, budget: int) -> Iterator[list[int]]:
    """Indices of windows that go together: longest first, so that a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        rows = max(1, budget // (lengths[order[start]] * token_bytes))
        yield order[start : start + rows]
        start += rows


def pad(rows: list[tuple[int, ...]]) -> Tensor:
    """Token ids (rows, longest), zeros on the right."""
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row)
    return padded


Counts = tuple[bool, ...] | None


def _score_batch(some: Sequence[Window], model: Any, reference: Any | None) -> Tensor:
    rows, counts = [window.ids for window in some], [window.counts for window in some]
    padded = pad(rows)
    other = None if reference is None else _logits(reference, padded)
    return score_rows(rows, _logits(model, padded), other, counts)


def score_rows(
    rows: list[tuple[int, ...]],
    logits: Tensor,
    reference_logits: Tensor | None = None,
    counts: Sequence[Counts] | None = None,
) -> Tensor:
    """Sums over each row's predicted tokens, fp64 of shape (rows, 3): nll, KL, reference's nll.

    Args:
        logits: of `pad(rows)`, (rows, longest, vocabulary).
        counts: for each row, which of its tokens count; None = all.
    """
    wide = wide_dtype(logits.device)
    sums = torch.zeros(len(rows), 3, dtype=wide, device=logits.device)
    for index, row in enumerate(rows):
        own_counts = None if counts is None else counts[index]
        mine = slice(None) if own_counts is None else torch.tensor(own_counts[1:], device=logits.device)
        places, targets = slice(len(row) - 1), torch.tensor(row[1:], device=logits.device)[mine]
        own = logits[index, places][mine]
        terms = [nll_of_each(own, targets)]
        if reference_logits is not None:
            other = reference_logits[index, places].to(own.device)[mine]
            terms += [kl_of_each(own, other), nll_of_each(other, targets)]
        for place, each in enumerate(terms):
            sums[index, place] = each.sum(dtype=wide)
    return sums.cpu().double()


def _logits(model: Any, padded: Tensor) -> Tensor:
    ids = padded.to(model.device)
    # All ones: a padded place needs no masking, and without a mask the fast attention kernels apply.
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def total(found: list[Window], nll: float, divergence: float | None = None) -> Score:
    tokens = sum(window.predicted for window in found)
    known = [window.text_bytes for window in found if window.text_bytes is not None]
    text_bytes = sum(known) if len(known) == len(found) else None
    bits = nll / math.log(2) / text_bytes if text_bytes else None
    mean = nll / tokens
    power = math.exp(mean) if mean < 700 else math.inf
    return Score(
        perplexity=power,
        nll=nll,
        tokens=tokens,
        windows=len(found),
        text_bytes=text_bytes,
        bits_per_byte=bits,
        kl=None if divergence is None else divergence / tokens,
    )
