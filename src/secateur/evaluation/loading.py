"""A model and its tokenizer, ready to be evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.errors import InputError
from secateur.evaluation.perplexity import refuse_encoder
from secateur.model.classes import model_class
from secateur.model.files import read_config, read_header, read_index, read_tokenizer
from secateur.model.hub import local_folder
from secateur.model.json_files import short
from secateur.model.quiet import quiet_loading
from secateur.model.skeleton import check_size
from secateur.runtime.folder import is_compressed
from secateur.runtime.loading import check_runtime, load_compressed
from secateur.system.device import resolve_device, resolve_dtype

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode. `tokenizer` is None where the folder has none."""

    path: str
    model: Any
    tokenizer: Any | None
    device: torch.device
    dtype: torch.dtype


def load(
    path: str | Path, device: str = "auto", dtype: str = "auto", encoders: bool = False, runtime: str = "auto"
) -> Loaded:
    """Loads a model and its tokenizer for evaluation; models of uneven width and compressed ones too.

    Args:
        path: a folder, `embedded`, or a hub id.
        device: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda:1`, `mps`, or what torch has here.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, else what the checkpoint holds.
        encoders: also models that predict no next token; they are refused otherwise.
        runtime: for compressed weights, see `load_compressed`.

    Raises:
        InputError: no such folder, damaged or incomplete weights, an encoder, a device or dtype not to be had.
        UnsupportedModelError: `transformers` doesn't know the architecture.
    """
    where = resolve_device(device)
    folder = local_folder(path)
    config = read_config(folder)
    if not encoders:
        refuse_encoder(config)
    number = resolve_dtype(dtype, where, config)
    if is_compressed(folder):
        model = load_compressed(folder, where, number, runtime)
        return Loaded(str(folder), model, load_tokenizer(folder), where, number)
    check_runtime("dense" if runtime == "auto" else runtime, where)
    if runtime in ("compressed", "gpu"):
        raise InputError(f"{folder}: its weights aren't compressed; secateur compress makes a folder of those")
    model = _model(folder, config, number).to(where).eval().requires_grad_(False)
    return Loaded(str(folder), model, load_tokenizer(folder), where, number)


def load_tokenizer(path: str | Path) -> Any | None:
    """The tokenizer of a folder, or None if it holds no file of one.

    Raises:
        InputError: there are such files, but they don't load.
    """
    folder = Path(path)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    return read_tokenizer(folder)


def _model(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    # A damaged file is named before any of it is read, and a size that isn't there before it is allocated.
    files = sorted(set(read_index(folder).values()))
    check_size(folder, config, sum(entries for file in files for _, _, entries in read_header(file)))
    try:
        with quiet_loading():
            model, info = model_class(config).from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except ImportError as error:  # a quantised checkpoint whose library isn't installed
        raise InputError(f"{folder}: {short(error)}") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError) as error:
        raise InputError(f"{folder}: transformers doesn't load it ({short(error)}); see its *.json") from None
    # transformers would fill what is missing with random numbers, and the figures would be of another model.
    for kind, problem in (("missing_keys", "is missing"), ("mismatched_keys", "has a wrong shape")):
        if info[kind]:
            name = str(min(map(str, info[kind])))
            raise InputError(f"{folder}: tensor {name} {problem} for what its config.json says; fetch it again")
    _say_what_is_tied(model)
    return model


def _say_what_is_tied(model: Any) -> None:
    """Where the files hold a head of its own, its configuration says so from now on: else it could be tied later."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if (
        getattr(model.config, "tie_word_embeddings", False)
        and head is not None
        and head.weight is not embedding.weight
    ):
        model.config.tie_word_embeddings = False
