"""A model of a configuration without weights, quickly: its towers for images and sound are short."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from secateur.model.classes import stock_class, text_config

TOWER_LAYERS = frozenset(("num_hidden_layers", "depth", "num_layers", "encoder_layers", "num_global_layers"))


def without_weights(config: Any) -> Any:
    """The model of a configuration on the meta device, in fp32, its towers short where the class can have them so."""
    with quiet(), torch.device("meta"):
        with suppress(Exception):  # a class that wants its towers as they are
            short = short_towers(config)
            return stock_class(short)._from_config(short, dtype=torch.float32)
        return stock_class(config)._from_config(config, dtype=torch.float32)


def short_towers(config: Any) -> Any:
    """The same with towers for images and sound of one layer: nobody asks them anything, and they take long to build.

    Returns: the configuration itself where there are none.
    """
    inner, values = inner_name(config), config.to_dict()
    towers = [] if inner is None else [n for n in type(config).sub_configs if n != inner]
    for own in (values[name] for name in towers if isinstance(values.get(name), dict)):
        own |= {key: 1 for key in TOWER_LAYERS & own.keys() if type(own[key]) is int and own[key] > 1}
    if values == config.to_dict():
        return config
    made = type(config)(**{k: v for k, v in values.items() if k not in ("architectures", "auto_map")})
    made.architectures = getattr(config, "architectures", None)
    return made


def inner_name(config: Any) -> str | None:
    """The key under which the language model's configuration is kept; None if it's the whole."""
    text = text_config(config)
    return None if text is config else next(n for n in type(config).sub_configs if getattr(config, n, None) is text)


@contextmanager
def undisturbed() -> Iterator[None]:
    """What is found on a copy is the same whoever asks: gradients are on, and numbers are fp32 on the CPU."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.device("cpu"),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """What classes say while they are built is said of a copy, not of the model."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
