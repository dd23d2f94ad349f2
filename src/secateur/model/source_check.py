"""Before anything is cut: what is read layer by layer must be what `from_pretrained` loads.

The round-trip gate compares a result with the model in memory. Had that been misread, the gate would never know; so
the source is read both ways, and both must compute the same. A model that doesn't fit in memory is compared by its
first layer and what surrounds the layers.
"""

from __future__ import annotations

import torch

from secateur.errors import InputError, UnsupportedModelError
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import model_class
from secateur.model.depth import shallow_config
from secateur.model.files import read_config
from secateur.model.heads import answer_of
from secateur.model.quiet import quiet_loading
from secateur.model.round_trip import TOLERANCE
from secateur.model.streamed import StreamedModel
from secateur.system.malloc import give_back
from secateur.system.memory import fits_in_memory

TOKENS = 8


@torch.no_grad()
def check_source(checkpoint: Checkpoint, bound: int | None = None) -> None:
    """Compares both readings on a few tokens, in fp32.

    Args:
        bound: a model of more bytes (in fp32) is compared by its first layer.

    Raises:
        InputError: they differ, or the folder doesn't load as a whole.
    """
    layers = checkpoint.layers if fits_in_memory(checkpoint.parameters, torch.float32, bound) else 1
    config = _config_of(checkpoint, layers)
    if config is None:
        return
    vocabulary = int(checkpoint.config.vocab_size)
    ids = (torch.arange(1, TOKENS + 1) * (vocabulary // (TOKENS + 1) or 1) % vocabulary)[None]
    streamed = _streamed(checkpoint, ids, layers)
    try:
        with quiet_loading():
            model = model_class(config).from_pretrained(
                checkpoint.path, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        whole = answer_of(model.eval()(input_ids=ids))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{checkpoint.path}: doesn't load with from_pretrained ({reason})") from None
    del model
    give_back()
    difference = float((whole - streamed).abs().max()) / (float(whole.abs().max()) or 1.0)
    if not difference <= TOLERANCE:
        raise InputError(
            f"{checkpoint.path}: read layer by layer it computes something else than from_pretrained loads "
            f"({difference:.2e} of the largest logit, above {TOLERANCE:g}); nothing was cut"
        )


def _config_of(checkpoint: Checkpoint, layers: int) -> object | None:
    """The folder's own configuration, of so many layers; None where the class can't have fewer."""
    config = read_config(checkpoint.path)
    if layers == checkpoint.layers:
        return config
    if checkpoint.family.anatomies:
        return None
    try:
        return type(config)(**shallow_config(config, range(layers)))
    except UnsupportedModelError:
        return None


def _streamed(checkpoint: Checkpoint, ids: torch.Tensor, layers: int) -> torch.Tensor:
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    hidden, calls = streamed.embed(ids)
    for index in range(layers):
        hidden = calls[index](streamed.load(index), hidden)
    return streamed.logits(ids, hidden)
