"""What a model that predicts no next token is trained on: texts, and what is right of each.

A classifier has one answer a text or a token, a masked LM one for each token that was masked, a body one embedding a
text. `labels` say which places count: the right answer where it is known, UNKNOWN where only the dense model's answer
is, IGNORED where nothing is asked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.data.batches import framed
from secateur.data.items import Labelled, Tagged
from secateur.data.mixture import calibration_of
from secateur.data.tasks import FORMS, TaskFile, read_task
from secateur.errors import InputError
from secateur.evaluation.loading import Loaded
from secateur.evaluation.tasks.labels import encoded, numbers_of
from secateur.evaluation.tasks.run import CLASSIFY
from secateur.model.heads import MASKED, SEQUENCE, TOKEN, Head
from secateur.recovery.examples import first_row
from secateur.recovery.losses import IGNORED
from secateur.recovery.sequences import HELD_OUT, Rows, Text, parted

UNKNOWN = -1  # label of a place whose right answer nobody has said
MASK_SHARE = 0.15  # of tokens, as in BERT's own training


def is_labelled(spec: str) -> bool:
    """Whether `spec` is a file of rows with a text and its class, or with words and their classes."""
    row = first_row(spec)
    return any(all(set(names) & set(row) for names in FORMS[form]) for form in CLASSIFY)


def asks(spec: str, head: Head) -> bool:
    """Whether rows of `spec` have labels that a head could learn."""
    return head in (SEQUENCE, TOKEN) and is_labelled(spec)


def read_texts(spec: str, loaded: Loaded, head: Head, wanted: int, length: int, seed: int) -> Text:
    """Up to `wanted` texts to train on, and the held-out ones.

    Args:
        spec: rows with labels for this head, or any text: that is cut into pieces which begin and end as the
            tokenizer's texts do.

    Raises:
        InputError: data that can't be read, labels of another kind, or too little of it.
    """
    if asks(spec, head):
        rows, digest, notes = _labelled(spec, loaded, head, length)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return parted(rows.part(order), wanted, length, spec, digest, notes)
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    drawn = calibration_of(spec, lambda: loaded.tokenizer, wanted + 2 * HELD_OUT, length, seed, vocabulary, "--data")
    if head is MASKED:
        rows = _masked(drawn.tokens, loaded, seed)
    else:
        drawn = drawn if loaded.tokenizer is None else framed(drawn, loaded.tokenizer)
        shape = drawn.tokens.shape if head is TOKEN else drawn.tokens.shape[:1]
        rows = Rows(drawn.tokens, torch.full(shape, UNKNOWN))
    return parted(rows, wanted, length, drawn.source, drawn.source_sha256, drawn.notes)


def _labelled(spec: str, loaded: Loaded, head: Head, length: int) -> tuple[Rows, str, tuple[str, ...]]:
    """Texts as the tokenizer encodes them, cut at `length` tokens, padded behind; the file's SHA-256, and notes."""
    task = read_task(spec)
    if CLASSIFY.get(task.form, (None,))[0] is not head:
        raise InputError(f"{spec} asks for {CLASSIFY[task.form][0].name}, and {loaded.path} gives {head.name}")
    if loaded.tokenizer is None:
        raise InputError(f"{spec} holds text and the model has no tokenizer; save one beside its weights")
    if head is TOKEN:
        found, labels = _tagged(task, loaded)
    else:
        texts = [item for item in task.items if isinstance(item, Labelled)]
        labels = torch.tensor(numbers_of(loaded.model.config, [item.label for item in texts], spec))
        found = encoded(loaded, [item.text for item in texts], spec)["input_ids"]
    cut = sum(len(row) > length for row in found)
    notes = (f"{spec}: {cut} texts are longer than {length} tokens and lost their end",) if cut else ()
    width = min(length, max(map(len, found)))
    ids = torch.full((len(found), width), padding(loaded))
    mask = torch.zeros_like(ids)
    for index, row in enumerate(found):
        own = torch.tensor(list(row)[:width])
        ids[index, : len(own)], mask[index, : len(own)] = own, 1
    return Rows(ids, labels if head is SEQUENCE else labels[:, :width], mask=mask), task.sha256, notes


def _tagged(task: TaskFile, loaded: Loaded) -> tuple[list[list[int]], Tensor]:
    """Words in tokens, and labels (texts, tokens): the first token of a word answers for it."""
    assert loaded.tokenizer is not None
    if not getattr(loaded.tokenizer, "is_fast", False):
        raise InputError(f"{loaded.path}: its tokenizer can't tell which word a token is of; save a fast one with it")
    items = [item for item in task.items if isinstance(item, Tagged)]
    batch = encoded(loaded, [list(item.words) for item in items], task.spec, is_split_into_words=True)
    found = list(batch["input_ids"])
    labels = torch.full((len(found), max(map(len, found))), IGNORED)
    for index, item in enumerate(items):
        own = numbers_of(loaded.model.config, [label for label in item.labels if label is not None], task.spec)
        left = iter(own)
        of_word = [IGNORED if label is None else next(left) for label in item.labels]
        words = batch.word_ids(index)
        for place, word in enumerate(words):
            if word is not None and word not in words[:place]:
                labels[index, place] = of_word[word]
    return found, labels


def _masked(tokens: Tensor, loaded: Loaded, seed: int) -> Rows:
    """Some tokens of each row behind the mask; they are what is asked for."""
    token = getattr(loaded.tokenizer, "mask_token_id", None)
    if not isinstance(token, int):
        raise InputError(f"{loaded.path}: fills masks, and its tokenizer has no mask token; save one that has")
    chosen = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < MASK_SHARE
    chosen[:, 0] |= ~chosen.any(dim=1)  # a row without one would ask nothing
    return Rows(tokens.masked_fill(chosen, token), tokens.masked_fill(~chosen, IGNORED))


def padding(loaded: Loaded) -> int:
    """The token behind a text that is shorter than others."""
    config, tokenizer = loaded.model.config.get_text_config(), loaded.tokenizer
    named = (getattr(config, "pad_token_id", None), getattr(tokenizer, "pad_token_id", None))
    return next((token for token in named if isinstance(token, int) and token >= 0), 0)
