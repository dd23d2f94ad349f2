"""Which `transformers` class a configuration means, pruned checkpoints of uneven width included."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from secateur.errors import UnsupportedModelError
from secateur.model import modeling_secateur

MODULE = "modeling_secateur"


def is_uneven(config: Any) -> bool:
    """True for a checkpoint that needs the bundled modelling file."""
    return any(MODULE in str(value) for value in (getattr(config, "auto_map", None) or {}).values())


def stock_class(config: Any) -> Any:
    """The `transformers` class for this configuration's architecture: causal LM, or masked LM for encoders."""
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING):
        if type(config) in mapping:
            cls = mapping[type(config)]
            if config.model_type == "bert" and mapping is MODEL_FOR_CAUSAL_LM_MAPPING:
                continue  # BERT is an encoder here; its causal head is for decoders only
            return cls[0] if isinstance(cls, tuple) else cls
    raise UnsupportedModelError(f"transformers has no language model class for '{config.model_type}'")


def model_class(config: Any) -> Any:
    """Gives the class that builds a model: the `transformers` one, with per-layer widths mixed in for uneven models.

    Raises:
        UnsupportedModelError: `transformers` has no language model class for this configuration.
    """
    cls = stock_class(config)
    return getattr(modeling_secateur, f"Pruned{cls.__name__}") if is_uneven(config) else cls
