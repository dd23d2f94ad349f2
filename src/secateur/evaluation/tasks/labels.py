"""Classes of texts and of their words, by models that end in a classifier instead of a head over the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.data.items import Labelled, Tagged
from secateur.data.tokens import check_ids
from secateur.errors import InputError
from secateur.evaluation.loading import Loaded
from secateur.evaluation.progress import progress
from secateur.evaluation.windows import context_length
from secateur.model.heads import SEQUENCE, answer_of, head_of

TOKENS = {"cpu": 2048}  # that go through a model together
TOKENS_ELSE = 16384


def classify(loaded: Loaded, items: Sequence[Labelled], name: str, quiet: bool = True) -> tuple[list[int], int]:
    """The likeliest class of each text, and the tokens that went through the model; see `run_alike`."""
    assert loaded.tokenizer is not None, "the caller has asked for one"
    ids = encoded(loaded, [item.text for item in items], name)["input_ids"]
    found = [0] * len(items)

    def take(index: int, logits: Tensor) -> None:
        found[index] = int(logits.argmax(-1))

    run_alike(loaded, ids, take, name, quiet)
    return found, sum(map(len, ids))


def tag(
    loaded: Loaded, items: Sequence[Tagged], name: str, quiet: bool = True
) -> tuple[list[dict[int, int]], int, int]:
    """The likeliest class of each word, told by its first token.

    Returns: for each item, word -> class; the tokens that went through the model; words beyond its context.

    Raises:
        InputError: a tokenizer that can't tell which word a token is of.
    """
    assert loaded.tokenizer is not None, "the caller has asked for one"
    if not getattr(loaded.tokenizer, "is_fast", False):
        raise InputError(f"{loaded.path}: its tokenizer can't tell which word a token is of; save a fast one with it")
    batch = encoded(loaded, [list(item.words) for item in items], name, is_split_into_words=True)
    found: list[dict[int, int]] = [{} for _ in items]

    def take(index: int, logits: Tensor) -> None:
        chosen = logits.argmax(-1).tolist()
        for place, word in enumerate(batch.word_ids(index)):
            if word is not None:
                found[index].setdefault(word, chosen[place])

    run_alike(loaded, batch["input_ids"], take, name, quiet)
    lost = sum(len(item.words) - len(own) for item, own in zip(items, found, strict=True))
    return found, sum(map(len, batch["input_ids"])), lost


def encoded(loaded: Loaded, texts: Sequence[Any], name: str, **how: Any) -> Any:
    """Texts as the tokenizer encodes them by itself, cut at the context's end.

    Raises:
        InputError: a text that has no token, or that the tokenizer can't read.
    """
    assert loaded.tokenizer is not None, "the caller has asked for one"
    longest = context_length(loaded.model.config)
    try:
        batch = loaded.tokenizer(list(texts), truncation=longest is not None, max_length=longest, **how)
    except Exception as error:  # whatever its parser raises
        raise InputError(
            f"{name}: the model's tokenizer can't read it ({' '.join(str(error).split())[:200]})"
        ) from None
    for index, row in enumerate(batch["input_ids"], 1):
        if not row:
            raise InputError(f"{name}: text {index} is no token to this model's tokenizer")
    check_ids(batch["input_ids"], int(loaded.model.config.get_text_config().vocab_size), name)
    return batch


@torch.no_grad()
def run_alike(
    loaded: Loaded, ids: Sequence[Sequence[int]], take: Callable[[int, Tensor], None], name: str, quiet: bool = True
) -> None:
    """Runs rows of token ids through a model; those of the same length together, so that nothing is padded.

    Args:
        take: is given each row's number and what the model says of it, in fp32.
    """
    most, config = TOKENS.get(loaded.device.type, TOKENS_ELSE), loaded.model.config
    if head_of(config) is SEQUENCE and getattr(config.get_text_config(), "pad_token_id", None) is None:
        most = 0  # decoders that classify take several texts only where they know what is padded
    with progress(name, len(ids), quiet) as advance:
        for batch in _alike(ids, most):
            rows = torch.tensor([list(ids[index]) for index in batch], device=loaded.device)
            said = answer_of(loaded.model(input_ids=rows, attention_mask=torch.ones_like(rows))).float()
            for index, own in zip(batch, said, strict=True):
                take(index, own)
            advance(len(batch))


def _alike(ids: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    lengths: dict[int, list[int]] = {}
    for index, row in enumerate(ids):
        lengths.setdefault(len(row), []).append(index)
    for length, members in sorted(lengths.items(), reverse=True):
        size = max(1, most // length)
        yield from (members[first : first + size] for first in range(0, len(members), size))


def numbers_of(config: Any, labels: Sequence[int | str], name: str) -> list[int]:
    """The labels as numbers of the model's classes.

    Raises:
        InputError: a label that the model doesn't have, or a model that gives no classes.
    """
    if config.num_labels < 2:
        raise InputError(f"{name}: the model gives a number, no class; there is no accuracy of it")
    classes = {str(label): int(number) for number, label in (config.id2label or {}).items()}
    found = []
    for number, own in enumerate(labels, 1):
        label: Any = classes.get(str(own), own)
        if isinstance(label, str) and label.isdecimal():  # as it stands in a CSV file
            label = int(label)
        if not isinstance(label, int) or not 0 <= label < config.num_labels:
            known = ", ".join(classes) or str(config.num_labels)
            raise InputError(f"{name}: label {json.dumps(own)} of item {number} is no class: {known}")
        found.append(label)
    return found
