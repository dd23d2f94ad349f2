"""How far a pruned model agrees with the original, where neither has a perplexity.

Of bodies that embed texts the cosine of both embeddings, pooled as the folder says; of classifiers the part of texts
or tokens that get the same class; of models that fill masks the part of masked tokens that is filled alike. No labels
are needed, and it says nothing of whether either is right: that is what tasks are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.data.corpus import Corpus
from secateur.data.documents import load_corpus
from secateur.data.sources import split_specs
from secateur.errors import InputError
from secateur.evaluation.evaluation import evaluate
from secateur.evaluation.loading import Loaded, load
from secateur.evaluation.tasks.labels import encoded, run_alike
from secateur.evaluation.windows import evaluation_length, windows
from secateur.model.files import read_config
from secateur.model.heads import BODY, MASKED, SEQUENCE, SPAN, TOKEN, Head, head_of, predicts_next
from secateur.model.hub import local_folder
from secateur.model.sentence_modules import pooling_of
from secateur.numerics.paired import mean, standard_error
from secateur.report.schema.agreement import Agreed, AgreementFigures
from secateur.report.schema.figures import Evaluated
from secateur.system.device import dtype_name
from secateur.system.display import display

METRICS = {"cosine": BODY, "same_class": SEQUENCE, "same_label": TOKEN, "same_token": MASKED, "same_place": SPAN}
EVERY = 7  # about as many tokens are masked as in BERT's training

Reduce = Callable[[Tensor, Sequence[int]], Tensor]  # what a model says of a text, and its tokens -> what is compared


def evaluate_any(
    model: str | Path,
    data: str,
    against: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    length: int | None = None,
    speed: bool = True,
    quiet: bool = True,
) -> Evaluated | Agreed:
    """`evaluate` of a model that predicts next tokens, `agree` of every other.

    Raises:
        InputError: a model that has no perplexity, and none to compare it with; see both.
    """
    if predicts_next(read_config(local_folder(model))):
        return evaluate(model, data, against, device, dtype, length, speed, quiet)
    if against is None:
        raise InputError(
            f"{model}: predicts no next token and has no perplexity; give the model that it was cut from with "
            "--against, or --tasks with labels"
        )
    return agree(model, data, against, device, dtype, length, quiet)


def agree(
    model: str | Path,
    data: str,
    against: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    length: int | None = None,
    quiet: bool = True,
) -> Agreed:
    """Compares what two models say of the same texts.

    Args:
        model: a folder or a hub id, of a model that predicts no next token.
        data: text as for `evaluate`, one source or several with commas.
        against: the model that it was cut from.
        device, dtype: as for `evaluate`.
        length: tokens of a text at most. Default: the context (the shorter of both models'), at most 4096.

    Raises:
        InputError: models with other heads, embeddings of other widths, or data, device or dtype that can't be used.
    """
    with display("evaluate", quiet):
        return _agree(model, data, against, device, dtype, length)


def _agree(model: str | Path, data: str, against: str | Path, device: str, dtype: str, length: int | None) -> Agreed:
    corpora = [load_corpus(spec, split="held_out") for spec in split_specs(data)]
    sides = [load(path, device, dtype, encoders=True) for path in (model, against)]
    own, other = sides
    heads = [head_of(side.model.config) for side in sides]
    if heads[0] is not heads[1] or heads[0] not in METRICS.values():
        said = " and ".join("nothing known" if head is None else head.name for head in heads)
        raise InputError(f"{own.path} and {other.path} give {said}; give two models with the same head")
    metric = next(name for name, head in METRICS.items() if head is heads[0])
    tokens = min(evaluation_length(side.model.config, length) for side in sides)
    found: dict[str, AgreementFigures] = {}
    for corpus in corpora:
        rows, seen = _rows(corpus, own, tokens, heads[0])
        pooling = pooling_of(Path(own.path)) if heads[0] is BODY else None
        reduce = _reduction(heads[0], pooling, own.tokenizer)
        mine, theirs = (_said(side, seen, rows, reduce) for side in sides)
        found[corpus.name] = _figures(metric, corpus, mine, theirs, rows)
        if pooling is not None:
            found[corpus.name]["pooling"] = pooling
    return {
        "model": own.path,
        "against": other.path,
        "device": str(own.device),
        "dtype": dtype_name(own.dtype),
        "threads": torch.get_num_threads(),
        "agreement": found,
        "notes": [note for corpus in corpora for note in corpus.notes],
    }


@dataclass(frozen=True)
class _Mask:
    """Every seventh token from the fourth on is masked; in a text without one all count, unmasked."""

    token: int

    def places(self, row: Sequence[int]) -> list[int]:
        return list(range(EVERY // 2, len(row), EVERY)) or list(range(len(row)))

    def of(self, row: Sequence[int]) -> list[int]:
        gone = set(self.places(row)) if len(row) > EVERY // 2 else set()
        return [self.token if place in gone else token for place, token in enumerate(row)]


def _rows(
    corpus: Corpus, loaded: Loaded, length: int, head: Head | None
) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Token ids of each text: as the tokenizer encodes it by itself, and as the models see it, masked maybe."""
    if corpus.documents is not None and not corpus.stream and loaded.tokenizer is not None:
        batch = encoded(loaded, corpus.documents, corpus.name)
        rows: list[Sequence[int]] = [ids[:length] for ids in batch["input_ids"]]
    else:
        vocabulary = int(loaded.model.config.get_text_config().vocab_size)
        rows = [window.ids for window in windows(corpus, loaded.tokenizer, length, vocabulary)]
    mask = _mask_of(loaded.tokenizer) if head is MASKED else None
    return rows, rows if mask is None else [mask.of(row) for row in rows]


def _mask_of(tokenizer: Any) -> _Mask | None:
    token = getattr(tokenizer, "mask_token_id", None)
    return _Mask(token) if isinstance(token, int) else None


def _reduction(head: Head | None, pooling: str | None, tokenizer: Any) -> Reduce:
    """What is kept of a model's answer to one text."""
    if head is BODY:
        return lambda said, _: pooled(said, pooling or "mean")
    if head is SPAN:
        return lambda said, _: said.argmax(0)
    mask = _mask_of(tokenizer) if head is MASKED else None
    if mask is not None:
        return lambda said, row: said[mask.places(row)].argmax(-1)
    return lambda said, _: said.argmax(-1)


def pooled(states: Tensor, way: str) -> Tensor:
    """One vector (hidden,) of hidden states (tokens, hidden): `first`, `last`, `max` or `mean`."""
    if way == "first":
        return states[0]
    if way == "last":
        return states[-1]
    return states.amax(0) if way == "max" else states.mean(0)


def _said(loaded: Loaded, seen: list[Sequence[int]], rows: list[Sequence[int]], reduce: Reduce) -> list[Tensor]:
    found: dict[int, Tensor] = {}

    def take(index: int, said: Tensor) -> None:
        found[index] = reduce(said, rows[index]).cpu()

    run_alike(loaded, seen, take, Path(loaded.path).name, quiet=True)
    return [found[index] for index in range(len(rows))]


def _figures(
    metric: str, corpus: Corpus, own: list[Tensor], other: list[Tensor], rows: list[Sequence[int]]
) -> AgreementFigures:
    if any(a.shape != b.shape for a, b in zip(own, other, strict=True)):
        raise InputError(
            f"the models' answers have {own[0].numel()} and {other[0].numel()} numbers: nothing to compare"
        )
    if metric == "cosine":
        values = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(own, other, strict=True)]
    else:
        values = [float((a == b).float().mean()) for a, b in zip(own, other, strict=True)]
    return {
        "metric": metric,
        "value": mean(values),
        "stderr": standard_error(values),
        "lowest": min(values),
        "items": len(values),
        "tokens": sum(map(len, rows)),
        "data": corpus.name,
        "data_sha256": corpus.sha256,
    }
