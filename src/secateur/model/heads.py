"""What a model ends in: a head over the vocabulary, a classifier, or nothing, as its configuration names it.

The body is cut alike whatever stands on it; a head is kept as it is. Which class loads a folder, what is compared
when two models should compute the same, and what a result can be judged by depend on the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)


@dataclass(frozen=True)
class Head:
    """What stands on a body of decoder or encoder layers.

    Args:
        name: what it gives, in words.
        auto: the `Auto` class that opens such a checkpoint.
        tokens: it's over the vocabulary.
    """

    name: str
    auto: Any
    tokens: bool = False

    @property
    def classes(self) -> Mapping[Any, Any]:
        """Configuration class -> model class, or several."""
        found: Mapping[Any, Any] = self.auto._model_mapping
        return found

    def of(self, config: Any) -> Any:
        """The class that has this head for a configuration; None where transformers has none."""
        found = self.classes.get(type(config), None)
        return found[0] if isinstance(found, tuple) else found


CAUSAL = Head("next tokens", AutoModelForCausalLM, tokens=True)
MASKED = Head("masked tokens", AutoModelForMaskedLM, tokens=True)
SEQUENCE = Head("a class for a text", AutoModelForSequenceClassification)
TOKEN = Head("a class for each token", AutoModelForTokenClassification)
SPAN = Head("an answer's place in a text", AutoModelForQuestionAnswering)
BODY = Head("hidden states", AutoModel)

# Types whose positions are counted from behind the padding token: the first entries of their table are unused.
AFTER_PADDING = frozenset((
    "camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
))  # fmt: skip

HEADS = (SEQUENCE, TOKEN, SPAN, MASKED, CAUSAL, BODY)


def head_of(config: Any) -> Head | None:
    """The head that a configuration names, else the usual one of its architecture; None where there is none.

    Encoders that have both (BERT, RoBERTa) predict masked tokens, unless they are said to be decoders.
    """
    for name in getattr(config, "architectures", None) or ():
        found = _named(str(name).removeprefix("Pruned"))
        if found is not None and found.of(config) is not None:
            return MASKED if found is CAUSAL and _is_encoder(config) else found
    usual = (MASKED, CAUSAL) if _is_encoder(config) else (CAUSAL, MASKED)
    return next((head for head in usual if head.of(config) is not None), None)


def predicts_texts(config: Any) -> bool:
    """Whether there is one prediction for a whole text: its class, or where an answer lies."""
    return head_of(config) in (SEQUENCE, SPAN)


def predicts_next(config: Any) -> bool:
    """Whether a model predicts the next token from those before it; so do those that see, which name no such head."""
    return head_of(config) in (CAUSAL, None)


def unused_positions(config: Any) -> int:
    """Entries of a table of positions that no token gets, of those that a configuration counts."""
    padding = getattr(config, "pad_token_id", None)
    return padding + 1 if config.model_type in AFTER_PADDING and isinstance(padding, int) else 0


def answer_of(output: Any) -> Tensor:
    """What a model says: the logits of its head, begin and end of an answer side by side, or the hidden states."""
    for name in ("logits", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    return torch.stack([output.start_logits, output.end_logits], dim=-1)


def _named(name: str) -> Head | None:
    """The head of a class of transformers."""
    cls = getattr(transformers, name, None)
    own = getattr(cls, "config_class", None)
    if not isinstance(cls, type) or own is None:
        return None
    for head in HEADS:
        found = head.classes.get(own, ())
        if cls in (found if isinstance(found, tuple) else (found,)):
            # Llama 4, whose whole stands where a body should be, writes text.
            return head if head is not BODY or name.endswith("Model") else None
    return None


def _is_encoder(config: Any) -> bool:
    """Whether a model that could be either sees what comes after a token."""
    bert = config.model_type == "bert"  # an encoder here, whatever it says; its causal head is for decoders only
    decodes = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    return MASKED.of(config) is not None and (bert or not decodes)
