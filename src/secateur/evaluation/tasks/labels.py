"""Classes of texts, by models that end in a classifier instead of a head over the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from secateur.data.items import Labelled
from secateur.errors import InputError
from secateur.evaluation.loading import Loaded, load_tokenizer
from secateur.evaluation.progress import progress
from secateur.evaluation.windows import context_length
from secateur.model.files import read_config
from secateur.model.hub import local_folder
from secateur.model.json_files import short
from secateur.model.quiet import quiet_loading
from secateur.system.device import resolve_device, resolve_dtype

TOKENS = {"cpu": 2048}  # that go through a model together
TOKENS_ELSE = 16384
CLASSIFIER = "ForSequenceClassification"


def classifies(path: str | Path) -> bool:
    """Whether a folder's model gives texts classes."""
    config = read_config(local_folder(path))
    return any(str(name).endswith(CLASSIFIER) for name in config.architectures or ())


def load_classifier(path: str | Path, device: str = "auto", dtype: str = "auto") -> Loaded:
    """A model that gives texts classes, in eval mode.

    Raises:
        InputError: a folder that doesn't load as one, or whose classifier is missing.
    """
    from transformers import AutoModelForSequenceClassification

    where, folder = resolve_device(device), local_folder(path)
    config = read_config(folder)
    number = resolve_dtype(dtype, where, config)
    try:
        with quiet_loading():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=config,
                dtype=number,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError(f"{folder}: transformers doesn't load it as a classifier ({short(error)})") from None
    if info["missing_keys"]:
        name = min(map(str, info["missing_keys"]))
        raise InputError(f"{folder}: tensor {name} is missing for what its config.json says; fetch it again")
    model = model.to(where).eval().requires_grad_(False)
    return Loaded(str(folder), model, load_tokenizer(folder), where, number)


@torch.no_grad()
def classify(loaded: Loaded, items: Sequence[Labelled], name: str, quiet: bool = True) -> tuple[list[int], int]:
    """The likeliest class of each text, and the tokens that went through the model.

    Texts of the same length go together, so that nothing is padded; what is over the context is cut at its end.
    """
    longest = context_length(loaded.model.config)
    assert loaded.tokenizer is not None, "the caller has asked for one"
    texts = [item.text for item in items]
    ids = loaded.tokenizer(texts, truncation=longest is not None, max_length=longest)["input_ids"]
    alike: dict[int, list[int]] = {}
    for index, row in enumerate(ids):
        if not row:
            raise InputError(f"{name}: text {index + 1} is no token to this model's tokenizer")
        alike.setdefault(len(row), []).append(index)
    found = [0] * len(items)
    most = TOKENS.get(loaded.device.type, TOKENS_ELSE)
    with progress(name, len(items), quiet) as advance:
        for length, members in sorted(alike.items(), reverse=True):
            for first in range(0, len(members), max(1, most // length)):
                batch = members[first : first + max(1, most // length)]
                rows = torch.tensor([ids[index] for index in batch], device=loaded.device)
                logits = loaded.model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits
                for index, chosen in zip(batch, logits.float().argmax(-1).tolist(), strict=True):
                    found[index] = chosen
                advance(len(batch))
    return found, sum(map(len, ids))


def numbers_of(config: Any, items: Sequence[Labelled], name: str) -> list[int]:
    """The labels as numbers of the model's classes.

    Raises:
        InputError: a label that the model doesn't have.
    """
    classes = {str(label): int(number) for number, label in (config.id2label or {}).items()}
    found = []
    for number, item in enumerate(items, 1):
        label = classes.get(str(item.label), item.label)
        if isinstance(label, str) and label.isdecimal():  # as it stands in a CSV file
            label = int(label)
        if not isinstance(label, int) or not 0 <= label < config.num_labels:
            known = ", ".join(classes) or str(config.num_labels)
            raise InputError(f"{name}: label {json.dumps(item.label)} of item {number} is no class: {known}")
        found.append(label)
    return found
