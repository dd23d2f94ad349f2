"""A model and its tokenizer, ready to be evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from secateur.errors import InputError
from secateur.evaluate.compute import resolve_device, resolve_dtype
from secateur.evaluate.perplexity import refuse_encoder

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Loaded:
    """A causal LM in eval mode. `tokenizer` is None where the folder has none."""

    path: str
    model: Any
    tokenizer: Any | None
    device: torch.device
    dtype: torch.dtype


def load(path: str | Path, device: str = "auto", dtype: str = "auto") -> Loaded:
    """Load a checkpoint folder (or a hub id) for evaluation.

    Raises:
        InputError: no such model, an encoder, or a device or dtype that can't be had.
    """
    where = resolve_device(device)
    config = _config(path)
    refuse_encoder(config)
    number = resolve_dtype(dtype, where, config)
    model = _model(path, number).to(where).eval().requires_grad_(False)
    return Loaded(str(path), model, load_tokenizer(path), where, number)


def load_tokenizer(path: str | Path) -> Any | None:
    """The tokenizer of a folder, or None if it holds no file of one.

    Raises:
        InputError: there are such files, but they don't load.
    """
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=folder.is_dir())
    except Exception as error:  # a broken tokenizer file raises whatever its parser raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: the tokenizer doesn't load: {reason}") from None


def _config(path: str | Path) -> Any:
    try:
        return AutoConfig.from_pretrained(path, local_files_only=Path(path).is_dir())
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is no model that can be evaluated: {reason}") from None


def _model(path: str | Path, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=Path(path).is_dir())
