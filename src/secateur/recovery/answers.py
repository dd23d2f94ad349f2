"""How a model with any head is asked while it is trained, and which losses its answers have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.config.training import Recovery
from secateur.errors import InputError
from secateur.evaluation.tasks.run import CLASSIFY
from secateur.model.heads import BODY, MASKED, SPAN, Head, answer_of, head_of, predicts_next
from secateur.model.sentence_modules import pooling_of


def other_head(config: Any) -> Head | None:
    """The head of a model that predicts no next token; None of one that does.

    Raises:
        InputError: a head that can't be trained here.
    """
    head = None if predicts_next(config) else head_of(config)
    if head is SPAN or (head is None and not predicts_next(config)):
        raise InputError(
            f"{config.model_type}: a model that gives {'something else' if head is None else head.name} can't be "
            "recovered; those can that predict tokens, classify or embed"
        )
    return head


def check_other(recovery: Recovery) -> None:
    """Refuses what only models that predict next tokens have.

    Raises:
        InputError: in one line.
    """
    for flag, given in (
        ("--shard", recovery.shard),
        ("--top-k", recovery.top_k is not None),
        ("--teacher-dtype int8", recovery.teacher_dtype == "int8"),
        ("--no-merge", not recovery.merge),
    ):
        if given:
            raise InputError(f"{flag} is for models that predict next tokens; leave it out")


def with_losses(recovery: Recovery, head: Head, data: str, labelled: bool) -> Recovery:
    """The recovery with the losses that a head has: the dense model's answers, and the labels where there are any.

    Raises:
        InputError: labels are asked for, and there are none.
    """
    if recovery.loss is None:
        own = {"logits": 1.0} | ({"lm": 1.0} if labelled and head is not MASKED else {})
        recovery = recovery.model_copy(update={"loss": own if recovery.how == "distill" else {"lm": 1.0}})
    if "lm" in recovery.mix and not labelled:
        rows = next((f"rows with {rows}, or " for own, rows in CLASSIFY.values() if own is head), "")
        raise InputError(f"{data}: no labels in it that could be learned; give {rows}--loss logits")
    return recovery


@dataclass(frozen=True)
class Asking:
    """How a model is asked, and which places of its answer are compared.

    Args:
        head: None of a model that predicts next tokens: the place before a token answers for it.
        pooling: of a body, how hidden states become one vector.
    """

    head: Head | None = None
    pooling: str = "mean"

    def labels(self, labels: Tensor) -> Tensor:
        return labels[:, 1:] if self.head is None else labels

    def places(self, answer: Tensor) -> Tensor:
        """Of an answer, or of labels' neighbours, those that `labels` are of."""
        return answer[:, :-1] if self.head is None else answer

    def ask(self, model: Any, inputs: dict[str, Tensor], hidden: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The answer (batch, places, classes), of a classifier of texts or a body (batch, ...), and hidden states."""
        if self.head is None:
            out = model(**inputs, use_cache=False, output_hidden_states=hidden)
            return out.logits, tuple(out.hidden_states) if hidden else ()
        out = model(**inputs, output_hidden_states=hidden)
        said = answer_of(out)
        if self.head is BODY:
            said = pooled(said, inputs.get("attention_mask"), self.pooling)
        return said, tuple(out.hidden_states) if hidden else ()

    def seen(self, inputs: dict[str, Tensor]) -> Tensor:
        """Bool (batch, tokens): places whose hidden states are compared."""
        mask = inputs.get("attention_mask")
        return torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


NEXT_TOKEN = Asking()


def asking_of(folder: Path, head: Head | None) -> Asking:
    return Asking(head, pooling_of(folder) if head is BODY else "mean")


def pooled(states: Tensor, mask: Tensor | None, way: str) -> Tensor:
    """Hidden states (batch, tokens, hidden) as one vector each; what is padded doesn't count."""
    mask = torch.ones(states.shape[:2], device=states.device) if mask is None else mask.to(states.dtype)
    if way == "first":
        return states[:, 0]
    if way == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(1).long() - 1]
    if way == "max":
        return states.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
