"""How far two models agree that have no perplexity: `eval --against --json`, and the report's section `agreement`."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict


class AgreementFigures(TypedDict):
    """On one source. `metric`: `cosine` of the texts' embeddings, or the part that is told alike: `same_class` of
    texts, `same_label` of tokens, `same_token` of masked ones, `same_place` of an answer's ends. `value` is the mean
    over the texts, `lowest` the least of them; `pooling`: how hidden states became an embedding."""

    metric: str
    value: float
    stderr: float | None
    lowest: float
    items: int
    tokens: int
    data: str
    data_sha256: str
    pooling: NotRequired[str]


class Agreed(TypedDict):
    """`eval --against --json` of models without a perplexity: figures by text."""

    model: str
    against: str
    device: str
    dtype: str
    threads: int
    agreement: dict[str, AgreementFigures]
    notes: list[str]
