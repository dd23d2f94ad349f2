"""Which `transformers` class a configuration means, pruned checkpoints of uneven width included."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

from secateur.errors import UnsupportedModelError
from secateur.model import modeling_secateur
from secateur.model.heads import CAUSAL, MASKED, head_of

MODULE = "modeling_secateur"


def is_uneven(config: Any) -> bool:
    """True for a checkpoint that needs the bundled modelling file."""
    return any(MODULE in str(value) for value in (getattr(config, "auto_map", None) or {}).values())


def stock_class(config: Any) -> Any:
    """The `transformers` class for this configuration: with the head that it names, else a causal or masked LM.

    Raises:
        UnsupportedModelError: there is none.
    """
    head = head_of(config)
    if is_composite(config) and head in (CAUSAL, MASKED, None):
        return _composite_class(config)
    if head is None:
        raise UnsupportedModelError(f"transformers has no language model class for '{config.model_type}'")
    return head.of(config)


def text_config(config: Any) -> Any:
    """The part of a configuration that the language model in it is built from; the whole of it, mostly."""
    found = config.get_text_config(decoder=True)
    inside = any(getattr(config, name, None) is found for name in getattr(config, "sub_configs", None) or ())
    return found if inside else config  # encoder-decoders make one up


def is_composite(config: Any) -> bool:
    """Whether the language model is a part of a larger one that also sees or hears."""
    return text_config(config) is not config


def _composite_class(config: Any) -> Any:
    """The class that a checkpoint names, if it's one of transformers' for this configuration; else the usual one."""
    for name in getattr(config, "architectures", None) or ():
        cls = getattr(transformers, name.removeprefix("Pruned"), None)
        if isinstance(cls, type) and getattr(cls, "config_class", None) is type(config):
            return cls
    for mapping in (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING,
    ):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise UnsupportedModelError(f"transformers has no class for '{config.model_type}' that writes text")


def auto_class(config: Any) -> Any:
    """The `Auto` class that opens a checkpoint of this configuration."""
    head = head_of(config)
    if head is not None and not (is_composite(config) and head.tokens):
        return head.auto
    cls, autos = stock_class(config), (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM)
    for auto in autos:
        found = auto._model_mapping.get(type(config), None)
        if cls in (found if isinstance(found, tuple) else (found,)):
            return auto
    return autos[0]


def model_class(config: Any) -> Any:
    """Gives the class that builds a model: the `transformers` one, with per-layer widths mixed in for uneven models.

    Raises:
        UnsupportedModelError: `transformers` has no language model class for this configuration.
    """
    cls = stock_class(config)
    return getattr(modeling_secateur, f"Pruned{cls.__name__}") if is_uneven(config) else cls
