"""A model without weights, from a configuration that may be anybody's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from secateur.errors import InputError, SecateurError
from secateur.model.classes import model_class
from secateur.model.json_files import short

MOST_BUFFER_BYTES = 2**32  # computed tables: a causal mask of 65,536 positions has as much


def empty_model(folder: Path, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the meta device: names and shapes, no memory.

    Raises:
        InputError: no model can be made of this configuration, or its computed tables wouldn't fit.
    """
    config = copy.deepcopy(config)
    file = folder / "config.json"
    try:
        with torch.device("meta"):
            model = model_class(config)._from_config(config, dtype=dtype)
    except SecateurError:
        raise
    except Exception as error:  # each class raises its own kinds
        said = f"'{error.args[0]}' is unknown" if isinstance(error, KeyError) and error.args else short(error)
        raise InputError(f"{file}: no {config.model_type} model can be made of it ({said})") from None
    size = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if size > MOST_BUFFER_BYTES:
        raise InputError(f"{file}: its tables alone would take {size / 1e9:,.0f} GB; see its context length")
    return model


def check_size(folder: Path, config: Any, held: int) -> None:
    """Refuses a configuration that asks for much more than the files hold, before memory is taken for it.

    Args:
        held: entries of all stored tensors.

    Raises:
        InputError: as above.
    """
    if getattr(config, "quantization_config", None):
        return  # several weights in one entry
    asked = sum(parameter.numel() for parameter in empty_model(folder, config, torch.float32).parameters())
    if asked > 4 * held:  # room for tied matrices and whatever is computed
        raise InputError(f"{folder}: config.json asks for {asked:,} parameters, but the files hold {held:,}")
