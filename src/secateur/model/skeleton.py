"""A model without weights, from a configuration that may be anybody's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from secateur.errors import InputError, SecateurError, UnsupportedModelError
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


def fill_buffers(model: PreTrainedModel, whole: bool = False) -> None:
    """Computes the tables of a model without weights (rotary ones, masks) that are part of no checkpoint.

    Args:
        whole: as `from_pretrained` does: each module by the class that it belongs to (a vision tower has its own),
            and where tables are still empty also by modules above, which may compute those of all layers at once.

    Raises:
        UnsupportedModelError: nothing computes one of them.
    """
    for owner, module in owned(model) if whole else ((model, module) for module in model.modules()):
        empty = {n: b for n, b in module.named_buffers(recurse=False) if b.is_meta}
        if empty:
            for name, buffer in empty.items():
                own = torch.empty_like(buffer, device="cpu")
                module._buffers[name] = own.fill_(float("nan")) if whole and own.is_floating_point() else own
            owner._init_weights(module)
    if not whole:
        return
    for owner, module in list(owned(model)) if _empty(model) else ():
        with suppress(Exception):  # classes that look at what only a model with weights has
            owner._init_weights(module)
    saved = set(model.state_dict())
    for name in _empty(model):
        if name not in saved:
            raise UnsupportedModelError(f"{model.config.model_type}: nothing computes its table {name}")


def owned(model: PreTrainedModel) -> Iterator[tuple[PreTrainedModel, torch.nn.Module]]:
    """Every module with the nearest model class at or above it, innermost first."""

    def below(owner: PreTrainedModel, module: torch.nn.Module) -> Iterator[tuple[PreTrainedModel, torch.nn.Module]]:
        owner = module if isinstance(module, PreTrainedModel) else owner
        for child in module.children():
            yield from below(owner, child)
        yield owner, module

    return below(model, model)


def _empty(model: PreTrainedModel) -> list[str]:
    """Names of tables that nothing has filled in."""
    floats = ((n, b) for n, b in model.named_buffers() if b.is_floating_point() and not b.is_meta)
    return [name for name, buffer in floats if bool(buffer.isnan().any())]


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
